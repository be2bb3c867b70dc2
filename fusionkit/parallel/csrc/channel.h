// What is still to be said to one peer and to be heard from it, each in order.
#pragma once

#include <deque>

#include "plan.h"
#include "transport.h"

namespace fusionkit_parallel {

struct Reduction;

struct Outgoing {
  bool has_header;
  Plan plan;
  const char* data;
  size_t size;
  const size_t* ready;  // how much of the data is there already; null: all of it
  bool begun = false;
  size_t sent = 0;
};

struct Incoming {
  bool has_header;
  Plan plan;  // what the peer must be doing
  char* into;
  size_t size;
  const Reduction* reduction;  // takes the data instead of `into`; or null
  bool begun = false;
  size_t received = 0;
};

class Channel {
 public:
  Channel(Transport& transport, int peer) : transport_(transport), peer_(peer) {}

  std::deque<Outgoing> outgoing;
  std::deque<Incoming> incoming;

  // Moves what can be moved now; false when that was nothing. Throws when the peer does something else.
  bool advance();
  // The first message still to come or to go, for errors; null when there is none.
  const Plan* pending() const;

 private:
  bool send_some();
  bool receive_some();
  bool advance_to_self();
  void compare(const Plan& theirs, const Plan& ours) const;

  Transport& transport_;
  const int peer_;
};

}  // namespace fusionkit_parallel
