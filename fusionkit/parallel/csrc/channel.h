// What is still to be said to one peer and to be heard from it, each in order.
#pragma once

#include <deque>

#include "plan.h"
#include "transport.h"
#include "turns.h"
#include "work.h"

namespace fusionkit_parallel {

// A plan where there is a header, then the data, then zeros up to the alignment.
struct Outgoing {
  Work* work;
  bool has_header;
  Plan plan;
  const char* data;
  size_t size;
  const size_t* ready;  // how much of the data is there already; null: all of it
  uint64_t turn = Turns::kNone;
  bool until_read = false;  // gone when the peer has read it, not when it is on its way
  size_t header_sent = 0, sent = 0;
};

struct Incoming {
  Work* work;
  bool has_header;
  Plan plan;  // what the peer must be doing
  char* into;
  size_t size;
  const Reduction* reduction;  // takes the data instead of `into`; or null
  bool begun = false;
  size_t received = 0;

  size_t rest() const;  // padding included
};

class Channel {
 public:
  Channel(Transport& transport, Turns& turns, int peer) : transport_(transport), turns_(turns), peer_(peer) {}

  std::deque<Outgoing> outgoing;
  std::deque<Incoming> incoming;

  // Moves what can be moved now, but no more than a share: other peers and the other direction shall not wait for
  // long. False when that was nothing. Throws when the peer does something else.
  bool advance();
  // The first message still to come or to go, for errors; null when there is none.
  const Plan* pending() const;
  // Whether nothing moves for want of this peer. A reduction that has its next bytes is waiting for another rank's.
  bool awaits_bytes() const;
  bool awaits_room() const;

 private:
  bool send_some();
  bool receive_some();
  bool send(Outgoing& message);     // true when it is gone
  bool receive(Incoming& message);  // true when it is there
  bool receive_header(Incoming& message);
  bool advance_to_self();
  void compare(const Plan& theirs, const Plan& ours) const;

  Transport& transport_;
  Turns& turns_;
  const int peer_;
  size_t moved_ = 0;  // bytes, in this direction of this advance
};

}  // namespace fusionkit_parallel
