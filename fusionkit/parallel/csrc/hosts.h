// How the ranks of a group that spans hosts find each other.
#pragma once

#include <memory>
#include <vector>

#include "caller.h"
#include "listener.h"
#include "transport.h"

namespace fusionkit_parallel {

// members: of all ranks, the same on each, this rank's own being `listener`. Ranks of one host share memory, all others
// talk through TCP: the higher rank calls the lower one. Returns when this rank has all its connections; throws, naming
// the ranks that are missing or cannot be reached, within `joining` seconds. timeout: the communicator's.
// watch: throws when another rank has given up.
std::unique_ptr<Transport> join_hosts(const Listener& listener, const GroupKey& key, int rank,
                                      const std::vector<Member>& members, double joining, double timeout,
                                      const Watch& watch = nullptr);

}  // namespace fusionkit_parallel
