// Streams that are asynchronous: a thread each, in order; and events between them.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace fusionkit_emulator {

// Work runs in the order in which it was given, after `enqueue` has returned. What throws leaves its text; the work
// after it is dropped, and `synchronize` throws it.
class Stream {
 public:
  explicit Stream(bool synchronous);
  ~Stream();

  void enqueue(std::function<void()> work);
  // Also after something threw: what others wait for.
  void enqueue_always(std::function<void()> work);
  void synchronize();
  void drain();  // synchronize that does not throw
  bool idle();

 private:
  struct Item {
    std::function<void()> work;
    bool always;
  };

  void serve();
  void push(Item item);
  void run(const Item& item);
  void require_sound();

  const bool synchronous_;
  std::deque<Item> queue_;
  bool busy_ = false, ending_ = false, failed_ = false;
  std::string error_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread thread_;
};

// A mark in a stream. Recording it again moves it; those who wait, wait for the mark that was recorded when they asked.
// Work on streams keeps it alive.
class Event : public std::enable_shared_from_this<Event> {
 public:
  void record(Stream& stream);
  void wait();               // by the calling thread
  void wait(Stream& other);  // by another stream
  bool reached();

 private:
  void wait_for(uint64_t count);

  uint64_t recorded_ = 0, reached_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace fusionkit_emulator
