// The connection of two ranks that carries no data: how they tell failures and partings apart.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "socket.h"

namespace fusionkit_parallel {

// A failure and an orderly leave are said in words. A connection that ends without a word is a rank that was killed, or
// a host that was lost: so a peer's state is known however full the connection for data is.
class Control {
 public:
  explicit Control(Socket socket) : socket_(std::move(socket)) {}

  int fd() const { return socket_.fd; }
  void tell_failure(const std::string& text) { tell(kFailed, text); }
  void leave();  // the last thing said

  // Takes in what has come. By one thread at a time.
  void hear();
  const std::string& failure() const { return failure_; }  // what the peer told, or ""
  bool has_left() const { return has_left_; }
  const std::string& end() const { return end_; }  // why nothing more comes, or ""

  std::atomic<bool> may_hear{true};

 private:
  static constexpr uint32_t kFailed = 1, kLeaving = 2;
  struct Message {
    uint32_t kind;
    char text[1020];
  };

  void tell(uint32_t kind, const std::string& text);

  Socket socket_;
  Message message_ = {};
  size_t received_ = 0;  // bytes of message_
  std::string failure_, end_;
  bool has_left_ = false;
};

}  // namespace fusionkit_parallel
