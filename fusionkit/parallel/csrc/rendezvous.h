// How the ranks of a communicator find each other: by an id that one of them makes and all are given.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "shared_memory.h"
#include "transport.h"

namespace fusionkit_parallel {

// The name of a socket, and a secret that whoever connects must know.
struct UniqueId {
  std::array<unsigned char, 8> name;
  std::array<unsigned char, 24> token;

  static UniqueId create();
  uint64_t group() const;  // the number of the communicator
};

// The ranks of a group that are on one host.
struct HostRanks {
  int rank, world_size;    // among them
  std::vector<int> names;  // their ranks in the group, for errors; none: the same
  bool with_events;        // SharedMemory's

  std::string name(int each) const;
};

// Rank 0 makes the shared memory and hands it to the others over a socket in the abstract namespace, which leaves no
// file. Returns when all ranks are there; throws, naming those that are not, after `timeout` seconds.
std::unique_ptr<SharedMemory> join_host(const UniqueId& id, const HostRanks& host, uint64_t group, double timeout,
                                        const Watch& watch = nullptr);
std::unique_ptr<Transport> join(const UniqueId& id, int rank, int world_size, double timeout);

}  // namespace fusionkit_parallel
