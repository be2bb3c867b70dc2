// One TCP connection for data, without blocking.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <string>

#include "socket.h"
#include "transport.h"

namespace fusionkit_parallel {

// What is read whole goes where it belongs at once; what is looked at first, plans and what is to be reduced, comes
// through a buffer.
class Stream {
 public:
  explicit Stream(Socket socket);

  int fd() const { return socket_.fd; }
  // Transport's, for this peer.
  size_t write(const char* data, size_t size, bool more);
  size_t read(char* into, size_t size);
  Bytes arrived(size_t wanted);
  void consumed(size_t num_bytes);

  const std::string& end() const { return end_; }  // why nothing more comes or goes, or ""
  void leave();                                    // what was written still arrives

  // Set by whoever waits when the kernel says so, cleared before each try.
  std::atomic<bool> may_read{true}, may_write{true};

 private:
  size_t receive(char* into, size_t size);
  void fill(size_t wanted);
  void wake_at(size_t num_bytes);
  void ended(const char* why);

  Socket socket_;
  std::unique_ptr<char, decltype(&std::free)> buffer_;
  size_t begin_ = 0, end_of_data_ = 0;  // in the buffer; `begin_` keeps the alignment of its place in the stream
  int wake_at_ = 1;                     // SO_RCVLOWAT
  std::string end_;
};

}  // namespace fusionkit_parallel
