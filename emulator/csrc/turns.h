// The order in which the host made the calls of one communicator, kept when they run on several streams.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

namespace fusionkit_emulator {

// Waiting cannot deadlock: what comes first was enqueued first, and waits for nothing that comes later.
class Turns {
 public:
  uint64_t take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return num_taken_++;
  }

  void wait(uint64_t turn) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return current_ == turn; });
  }

  void end(uint64_t turn) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_.insert(turn);
    while (ended_.erase(current_) != 0) ++current_;
    changed_.notify_all();
  }

 private:
  uint64_t num_taken_ = 0, current_ = 0;
  std::set<uint64_t> ended_;  // dropped by a stream that failed, before their turn came
  std::mutex mutex_;
  std::condition_variable changed_;
};

// Ends with the work that holds it, also when a stream drops that work.
class Turn {
 public:
  explicit Turn(std::shared_ptr<Turns> turns) : turns_(std::move(turns)), number_(turns_->take()) {}
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  ~Turn() { turns_->end(number_); }

  void wait() { turns_->wait(number_); }

 private:
  const std::shared_ptr<Turns> turns_;
  const uint64_t number_;
};

}  // namespace fusionkit_emulator
