#include "rendezvous.h"

#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "shared_memory.h"
#include "socket.h"

namespace fusionkit_parallel {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kVersion = 2;
constexpr size_t kMostHanded = 253;  // the kernel's SCM_MAX_FD

struct Hello {
  uint32_t version;
  int32_t rank, world_size;
  UniqueId id;
};

// The answer to a Hello: "" and the segment, or why the rank is refused. A rank that has mapped it sends it back.
struct Answer {
  char refused[248];
};

std::pair<sockaddr_un, socklen_t> address_of(const UniqueId& id) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::string name = "fusionkit-";
  for (const unsigned char byte : id.name) {
    char hex[3];
    std::snprintf(hex, sizeof hex, "%02x", byte);
    name += hex;
  }
  std::memcpy(address.sun_path + 1, name.data(), name.size());  // a leading zero: the abstract namespace
  return {address, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())};
}

Socket new_socket() {
  Socket made(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (made.fd < 0) throw system_error("no socket could be opened");
  return made;
}

bool is_same_user(int fd) {
  ucred peer = {};
  socklen_t size = sizeof peer;
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

void send_answer(int fd, const std::string& refused, const std::vector<int>& handed) {
  Answer answer = {};
  std::strncpy(answer.refused, refused.c_str(), sizeof answer.refused - 1);
  iovec data = {&answer, sizeof answer};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMostHanded)] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (!handed.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * handed.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * handed.size());
    std::memcpy(CMSG_DATA(header), handed.data(), sizeof(int) * handed.size());
  }
  sendmsg(fd, &message, MSG_NOSIGNAL);  // a rank that has ended is found by its missing reply
}

// What the first rank hands out: the segment, then the events. Nothing when it only says "go".
std::vector<Socket> receive_answer(int fd) {
  Answer answer = {};
  iovec data = {&answer, sizeof answer};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMostHanded)] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t received = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  std::vector<Socket> handed;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (received >= 0 && header != nullptr && header->cmsg_type == SCM_RIGHTS) {
    std::vector<int> fds((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    std::memcpy(fds.data(), CMSG_DATA(header), fds.size() * sizeof(int));
    for (const int each : fds) handed.emplace_back(each);
  }
  if (received != static_cast<ssize_t>(sizeof answer))
    throw joining_error("the rank that hands out the shared memory ended before all ranks had joined");
  if (answer.refused[0] != '\0') throw joining_error(answer.refused);
  return handed;
}

// Why a rank may not join, or "".
std::string objection(const Hello& hello, int world_size, const std::vector<Socket>& ranks) {
  const std::string rank = "rank " + std::to_string(hello.rank);
  if (hello.version != kVersion)
    return rank + " must speak version 2 of the protocol. Install one fusionkit everywhere";
  if (hello.world_size != world_size)
    return "world_size must be the same on all ranks, got " + std::to_string(world_size) + " on rank 0 and " +
           std::to_string(hello.world_size) + " on " + rank;
  if (hello.rank < 1 || hello.rank >= world_size || ranks[hello.rank].fd >= 0)
    return "each rank must join once, got " + rank + " a second time";
  return "";
}

std::string missing_ranks(const std::vector<Socket>& ranks, const HostRanks& host) {
  std::string missing;
  for (size_t rank = 1; rank < ranks.size(); ++rank)
    if (ranks[rank].fd < 0) missing += (missing.empty() ? "" : ", ") + host.name(static_cast<int>(rank));
  return missing;
}

void refuse(const std::vector<Socket>& ranks, const std::string& text) {
  for (const Socket& rank : ranks)
    if (rank.fd >= 0) send_answer(rank.fd, text, {});
  throw joining_error(text);
}

std::vector<Socket> accept_ranks(const UniqueId& id, const HostRanks& host, double timeout, Deadline deadline,
                                 const Watch& watch) {
  const Socket listener = new_socket();
  const auto [address, size] = address_of(id);
  if (bind(listener.fd, reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      listen(listener.fd, host.world_size) != 0)
    throw system_error("rank " + host.name(0) + " could not listen; an id serves one communicator and has one rank 0");
  std::vector<Socket> ranks(host.world_size);
  for (int num_joined = 1; num_joined < host.world_size;) {
    if (!readable(listener.fd, deadline, watch))
      refuse(ranks, "all " + std::to_string(host.world_size) + " ranks must join within " + seconds(timeout) +
                        ", rank " + missing_ranks(ranks, host) + " did not");
    Socket peer(accept4(listener.fd, nullptr, nullptr, SOCK_CLOEXEC));
    Hello hello = {};
    // Whoever is not of this group is left alone, and may not keep the others waiting for long.
    if (peer.fd < 0 || !is_same_user(peer.fd) || !readable(peer.fd, deadline_in(1))) continue;
    if (recv(peer.fd, &hello, sizeof hello, 0) != sizeof hello) continue;
    if (!is_same_secret(hello.id.token.data(), id.token.data(), id.token.size())) continue;
    if (const std::string text = objection(hello, host.world_size, ranks); !text.empty()) {
      send_answer(peer.fd, text, {});
      refuse(ranks, text);
    }
    ranks[hello.rank] = std::move(peer);
    ++num_joined;
  }
  return ranks;
}

std::vector<Socket> create_events(const HostRanks& host) {
  if (!host.with_events) return {};
  if (host.world_size >= static_cast<int>(kMostHanded))
    throw joining_error("at most 252 ranks of a host can be in a group with other hosts, got " +
                        std::to_string(host.world_size));
  std::vector<Socket> events;
  for (int rank = 0; rank < host.world_size; ++rank) {
    events.emplace_back(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (events.back().fd < 0) throw system_error("the system refused an eventfd");
  }
  return events;
}

std::unique_ptr<SharedMemory> lead(const UniqueId& id, const HostRanks& host, uint64_t group, double timeout,
                                   const Watch& watch) {
  const auto deadline = deadline_in(timeout);
  const std::vector<Socket> ranks = accept_ranks(id, host, timeout, deadline, watch);
  const size_t size = SharedMemory::segment_size(host.world_size);
  const Socket segment(Segment::create(size));
  std::vector<Socket> events = create_events(host);
  std::vector<int> handed = {segment.fd};
  for (const Socket& event : events) handed.push_back(event.fd);
  auto transport =
      std::make_unique<SharedMemory>(Segment::map(segment.fd, size), std::move(events), 0, host.world_size, group);
  for (int rank = 1; rank < host.world_size; ++rank) send_answer(ranks[rank].fd, "", handed);
  Answer mapped;
  for (int rank = 1; rank < host.world_size; ++rank)
    if (!readable(ranks[rank].fd, deadline, watch) || recv(ranks[rank].fd, &mapped, sizeof mapped, 0) != sizeof mapped)
      throw joining_error("rank " + host.name(rank) + " ended before all ranks had joined");
  for (int rank = 1; rank < host.world_size; ++rank) send_answer(ranks[rank].fd, "", {});
  return transport;
}

Socket connect_to_first(const UniqueId& id, const HostRanks& host, double timeout, Deadline deadline,
                        const Watch& watch) {
  const auto [address, size] = address_of(id);
  for (Deadline next = deadline_in(0.001 * kWatchMilliseconds);; usleep(2000)) {
    Socket connection = new_socket();
    if (connect(connection.fd, reinterpret_cast<const sockaddr*>(&address), size) == 0) return connection;
    if (Clock::now() >= deadline)
      throw joining_error("rank " + host.name(0) + " must join within " + seconds(timeout) + ", it did not");
    if (watch == nullptr || milliseconds_until(next) != 0) continue;
    watch(nullptr);
    next = deadline_in(0.001 * kWatchMilliseconds);
  }
}

std::unique_ptr<SharedMemory> follow(const UniqueId& id, const HostRanks& host, uint64_t group, double timeout,
                                     const Watch& watch) {
  const auto deadline = deadline_in(timeout);
  const std::string first = "rank " + host.name(0);
  const Socket leader = connect_to_first(id, host, timeout, deadline, watch);
  if (!is_same_user(leader.fd)) throw joining_error(first + " must be a process of this user");
  const Hello hello = {kVersion, host.rank, host.world_size, id};
  send(leader.fd, &hello, sizeof hello, MSG_NOSIGNAL);
  // The first rank knows who is missing: it gets a second more to say so.
  const auto last = deadline + std::chrono::seconds(1);
  if (!readable(leader.fd, last, watch)) throw joining_error(first + " must answer within " + seconds(timeout));
  std::vector<Socket> handed = receive_answer(leader.fd);
  if (handed.size() != (host.with_events ? host.world_size + 1u : 1u))
    throw joining_error(first + " must hand out the shared memory, the system kept it back. Raise `ulimit -n`");
  const Socket segment(std::move(handed.front()));
  handed.erase(handed.begin());
  auto transport = std::make_unique<SharedMemory>(Segment::map(segment.fd, SharedMemory::segment_size(host.world_size)),
                                                  std::move(handed), host.rank, host.world_size, group);
  send_answer(leader.fd, "", {});
  if (!readable(leader.fd, last, watch)) throw joining_error("all ranks must map the shared memory within the timeout");
  receive_answer(leader.fd);
  return transport;
}

}  // namespace

UniqueId UniqueId::create() {
  UniqueId id;
  if (getrandom(&id, sizeof id, 0) != sizeof id) throw system_error("the system gave no random bytes");
  return id;
}

uint64_t UniqueId::group() const {
  uint64_t group;
  std::memcpy(&group, name.data(), sizeof group);
  return group;
}

std::string HostRanks::name(int each) const { return std::to_string(names.empty() ? each : names[each]); }

std::unique_ptr<SharedMemory> join_host(const UniqueId& id, const HostRanks& host, uint64_t group, double timeout,
                                        const Watch& watch) {
  auto transport = host.rank == 0 ? lead(id, host, group, timeout, watch) : follow(id, host, group, timeout, watch);
  transport->watch_peers();
  return transport;
}

std::unique_ptr<Transport> join(const UniqueId& id, int rank, int world_size, double timeout) {
  if (world_size < 1 || rank < 0 || rank >= world_size)
    throw std::invalid_argument("communicator: rank must be in [0, world_size), got " + std::to_string(rank) +
                                "; world_size " + std::to_string(world_size));
  return join_host(id, {rank, world_size, {}, false}, id.group(), timeout);
}

}  // namespace fusionkit_parallel
