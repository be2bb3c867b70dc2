// A connection to a rank of another host, from the first packet to its welcome.
#pragma once

#include <string>

#include "listener.h"
#include "socket.h"

namespace fusionkit_parallel {

// Where the ranks of a group are.
struct Member {
  std::string host;  // the same text for ranks that can share memory
  std::string address;
  int port;
};

// For an error, when the address leads every host to itself; else "".
std::string loopback_note(const std::string& address);

class Caller {
 public:
  Caller(const Member& member, int peer, const Greeting& greeting);

  int fd() const { return socket_.fd; }
  short awaited() const;  // poll's events
  // Goes on after a poll; true when the peer has welcomed this rank. Throws when it has not, or cannot be reached.
  bool advance(const GroupKey& key);
  Socket take() { return std::move(socket_); }

  const int peer;
  const Purpose purpose;

 private:
  std::runtime_error error(const std::string& got) const;

  Socket socket_;
  const Deadline until_;  // for an answer of the peer's kernel
  std::string where_, note_;
  Greeting greeting_;
  Welcome welcome_ = {};
  size_t received_ = 0;
  bool is_connected_ = false;
};

}  // namespace fusionkit_parallel
