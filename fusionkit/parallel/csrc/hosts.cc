#include "hosts.h"

#include <poll.h>

#include <algorithm>
#include <stdexcept>

#include "mixed.h"
#include "rendezvous.h"
#include "tcp.h"

namespace fusionkit_parallel {
namespace {

// The connections of one rank to those of other hosts, while they are made.
class Gathering {
 public:
  Gathering(const Listener& listener, const GroupKey& key, int rank, const std::vector<Member>& members)
      : admission_(listener, key), key_(key), rank_(rank), members_(members), links_(members.size()) {}

  std::vector<Link> gather(double joining, double timeout, const Watch& watch);

 private:
  bool is_far(int peer) const { return members_[peer].host != members_[rank_].host; }
  int world_size() const { return static_cast<int>(members_.size()); }
  void call(int peer);
  void poll_all(Deadline deadline) const;
  void advance_callers();
  void admit();
  std::string objection(const Greeting& greeting);
  Socket& place(int peer, Purpose purpose);
  std::string missing();

  Admission admission_;
  const GroupKey& key_;
  const int rank_;
  const std::vector<Member>& members_;
  std::vector<Link> links_;
  std::vector<std::unique_ptr<Caller>> callers_;
};

std::vector<Link> Gathering::gather(double joining, double timeout, const Watch& watch) {
  const Deadline deadline = deadline_in(joining);
  try {
    for (int peer = 0; peer < rank_; ++peer)
      if (is_far(peer)) call(peer);
    while (!missing().empty()) {
      if (milliseconds_until(deadline) == 0)
        throw joining_error("all " + std::to_string(world_size()) + " ranks must join within " + seconds(timeout) +
                            ", rank " + missing() + " did not" + loopback_note(members_[rank_].address));
      poll_all(deadline);
      if (watch != nullptr) watch(nullptr);
      advance_callers();
      admit();
    }
  } catch (const std::exception& error) {
    if (watch != nullptr) watch(error.what());
    for (Link& link : links_)
      if (link.control.fd >= 0) Control(std::move(link.control)).tell_failure(error.what());
    throw;
  }
  return std::move(links_);
}

void Gathering::call(int peer) {
  for (const Purpose purpose : {Purpose::kData, Purpose::kControl})
    callers_.push_back(std::make_unique<Caller>(
        members_[peer], peer, Greeting{key_.caller, Greeting::kVersion, rank_, world_size(), purpose}));
}

void Gathering::poll_all(Deadline deadline) const {
  std::vector<pollfd> all;
  for (const int fd : admission_.fds()) all.push_back({fd, POLLIN, 0});
  for (const auto& caller : callers_) all.push_back({caller->fd(), caller->awaited(), 0});
  poll(all.data(), all.size(), std::min(milliseconds_until(deadline), kWatchMilliseconds));
}

void Gathering::advance_callers() {
  for (auto each = callers_.begin(); each != callers_.end();) {
    if (!(*each)->advance(key_)) {
      ++each;
      continue;
    }
    place((*each)->peer, (*each)->purpose) = (*each)->take();
    each = callers_.erase(each);
  }
}

void Gathering::admit() {
  for (Admission::Admitted& each : admission_.admit()) {
    const std::string text = objection(each.greeting);
    admission_.welcome(each.socket.fd, text);
    if (!text.empty()) throw joining_error(text);
    place(each.greeting.rank, each.greeting.purpose) = std::move(each.socket);
  }
}

std::string Gathering::objection(const Greeting& greeting) {
  const std::string rank = "rank " + std::to_string(greeting.rank);
  if (greeting.version != Greeting::kVersion)
    return rank + " must speak version 1 of the protocol. Install one fusionkit everywhere";
  if (greeting.world_size != world_size())
    return "world_size must be the same on all ranks, got " + std::to_string(world_size()) + " on rank " +
           std::to_string(rank_) + " and " + std::to_string(greeting.world_size) + " on " + rank;
  const bool may_call = greeting.rank > rank_ && greeting.rank < world_size() && greeting.purpose <= Purpose::kControl;
  if (!may_call || !is_far(greeting.rank) || place(greeting.rank, greeting.purpose).fd >= 0)
    return "each rank must join once, got " + rank + " a second time";
  return "";
}

Socket& Gathering::place(int peer, Purpose purpose) {
  return purpose == Purpose::kData ? links_[peer].data : links_[peer].control;
}

std::string Gathering::missing() {
  std::string missing;
  for (int peer = 0; peer < world_size(); ++peer) {
    if (!is_far(peer) || (links_[peer].data.fd >= 0 && links_[peer].control.fd >= 0)) continue;
    missing += (missing.empty() ? "" : ", ") + std::to_string(peer);
  }
  return missing;
}

// Two hosts may be one machine, and their ids must differ then.
UniqueId id_of_host(UniqueId id, int first_rank) {
  for (size_t i = 0; i < sizeof first_rank; ++i) id.name[i] ^= reinterpret_cast<unsigned char*>(&first_rank)[i];
  return id;
}

}  // namespace

std::unique_ptr<Transport> join_hosts(const Listener& listener, const GroupKey& key, int rank,
                                      const std::vector<Member>& members, double joining, double timeout,
                                      const Watch& watch) {
  const int world_size = static_cast<int>(members.size());
  if (rank < 0 || rank >= world_size)
    throw std::invalid_argument("communicator: rank must be in [0, world_size), got " + std::to_string(rank) +
                                "; world_size " + std::to_string(world_size));
  std::vector<int> neighbours;
  for (int peer = 0; peer < world_size; ++peer)
    if (members[peer].host == members[rank].host) neighbours.push_back(peer);
  const int num_near = static_cast<int>(neighbours.size());
  const auto own = std::find(neighbours.begin(), neighbours.end(), rank);
  const HostRanks host = {static_cast<int>(own - neighbours.begin()), num_near, neighbours, num_near != world_size};
  const UniqueId id = id_of_host(key.id, neighbours.front());
  if (num_near == world_size) return join_host(id, host, key.id.group(), joining, watch);

  const Deadline deadline = deadline_in(joining);
  std::vector<Link> links = Gathering(listener, key, rank, members).gather(joining, timeout, watch);
  for (int peer = 0; peer < world_size; ++peer)
    links[peer].address = members[peer].address + " port " + std::to_string(members[peer].port);
  auto far = std::make_unique<Tcp>(std::move(links), rank, key.id.group(), timeout);
  if (num_near == 1) return far;
  try {
    auto near = join_host(id, host, key.id.group(), milliseconds_until(deadline) * 1e-3, watch);
    return std::make_unique<Mixed>(std::move(near), std::move(far), neighbours);
  } catch (const std::exception& error) {
    far->fail(error.what());
    throw;
  }
}

}  // namespace fusionkit_parallel
