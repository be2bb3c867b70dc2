// Where a rank lets the ranks of other hosts in, and nobody else.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "rendezvous.h"
#include "socket.h"

namespace fusionkit_parallel {

// What the ranks of one group know and nobody else: the id of the shared memory, and two words, so that who calls and
// who is called both prove that they belong to the group.
struct GroupKey {
  using Word = std::array<unsigned char, 32>;
  UniqueId id;
  Word caller, called;

  static GroupKey create();
};

enum class Purpose : uint32_t { kData, kControl };

struct Greeting {
  static constexpr uint32_t kVersion = 1;
  GroupKey::Word word;  // first: other bytes are recognised by it
  uint32_t version;
  int32_t rank, world_size;
  Purpose purpose;
};

// The answer to a greeting: "" or why the rank is refused.
struct Welcome {
  GroupKey::Word word;
  char refused[224];
};

class Listener {
 public:
  // On this address alone, at a port that the system chooses.
  explicit Listener(const std::string& address);

  int fd() const { return socket_.fd; }
  int port() const { return port_; }

 private:
  Socket socket_;
  int port_ = 0;
};

// Those who have connected and not proved yet that they belong to the group. They may say anything, or nothing: they
// are dropped after a few seconds, and hold up nobody.
class Admission {
 public:
  Admission(const Listener& listener, const GroupKey& key) : listener_(listener), key_(key) {}

  struct Admitted {
    Socket socket;
    Greeting greeting;
  };

  // What a poll must wait for, and what to do after it.
  std::vector<int> fds() const;
  std::vector<Admitted> admit();
  // A member's end of the greeting.
  void welcome(int fd, const std::string& refused) const;

 private:
  struct Stranger {
    Socket socket;
    Deadline until;
    Greeting greeting = {};
    size_t received = 0;
  };

  void accept_all();
  bool hear(Stranger& stranger);  // false when it is to be dropped

  const Listener& listener_;
  const GroupKey& key_;
  std::vector<Stranger> strangers_;
};

}  // namespace fusionkit_parallel
