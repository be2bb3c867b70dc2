#include "rendezvous.h"

#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "shared_memory.h"

namespace fusionkit_parallel {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kVersion = 1;

struct Hello {
  uint32_t version;
  int32_t rank, world_size;
  UniqueId id;
};

// The answer to a Hello: "" and the segment, or why the rank is refused. A rank that has mapped it sends it back.
struct Answer {
  char refused[248];
};

class Socket {
 public:
  explicit Socket(int fd = -1) : fd(fd) {}
  Socket(Socket&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd, other.fd);
    return *this;
  }
  ~Socket() {
    if (fd >= 0) close(fd);
  }
  int fd;
};

std::runtime_error error(const std::string& text) { return std::runtime_error("communicator: " + text); }

std::runtime_error system_error(const std::string& what) { return error(what + " (" + std::strerror(errno) + ")"); }

int milliseconds_until(Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::max<int64_t>(left, 0));
}

bool readable(int fd, Clock::time_point deadline) {
  pollfd one = {fd, POLLIN, 0};
  int ready;
  do ready = poll(&one, 1, milliseconds_until(deadline));
  while (ready < 0 && errno == EINTR);
  return ready == 1;
}

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

void send_answer(int fd, const std::string& refused, int segment) {
  Answer answer = {};
  std::strncpy(answer.refused, refused.c_str(), sizeof answer.refused - 1);
  iovec data = {&answer, sizeof answer};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (segment >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &segment, sizeof segment);
  }
  sendmsg(fd, &message, MSG_NOSIGNAL);  // a rank that has ended is found by its missing reply
}

// The segment that rank 0 sends, or -1 when it only says "go".
int receive_answer(int fd) {
  Answer answer = {};
  iovec data = {&answer, sizeof answer};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) != static_cast<ssize_t>(sizeof answer))
    throw error("rank 0 ended before all ranks had joined");
  if (answer.refused[0] != '\0') throw error(answer.refused);
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  int segment = -1;
  if (header != nullptr && header->cmsg_type == SCM_RIGHTS) std::memcpy(&segment, CMSG_DATA(header), sizeof segment);
  return segment;
}

// Why a rank may not join, or "".
std::string objection(const Hello& hello, int world_size, const std::vector<Socket>& ranks) {
  const std::string rank = "rank " + std::to_string(hello.rank);
  if (hello.version != kVersion)
    return rank + " must speak version 1 of the protocol. Install one fusionkit everywhere";
  if (hello.world_size != world_size)
    return "world_size must be the same on all ranks, got " + std::to_string(world_size) + " on rank 0 and " +
           std::to_string(hello.world_size) + " on " + rank;
  if (hello.rank < 1 || hello.rank >= world_size || ranks[hello.rank].fd >= 0)
    return "each rank must join once, got " + rank + " a second time";
  return "";
}

std::string missing_ranks(const std::vector<Socket>& ranks) {
  std::string missing;
  for (size_t rank = 1; rank < ranks.size(); ++rank)
    if (ranks[rank].fd < 0) missing += (missing.empty() ? "" : ", ") + std::to_string(rank);
  return missing;
}

std::vector<Socket> accept_ranks(const UniqueId& id, int world_size, double timeout, Clock::time_point deadline) {
  const Socket listener = new_socket();
  const auto [address, size] = address_of(id);
  if (bind(listener.fd, reinterpret_cast<const sockaddr*>(&address), size) != 0 || listen(listener.fd, world_size) != 0)
    throw system_error("rank 0 could not listen; an id serves one communicator and has one rank 0");
  std::vector<Socket> ranks(world_size);
  for (int num_joined = 1; num_joined < world_size;) {
    if (!readable(listener.fd, deadline)) {
      const std::string text = "all " + std::to_string(world_size) + " ranks must join within " +
                               std::to_string(static_cast<int>(timeout)) + " s, rank " + missing_ranks(ranks) +
                               " did not";
      for (const Socket& rank : ranks)
        if (rank.fd >= 0) send_answer(rank.fd, text, -1);
      throw error(text);
    }
    Socket peer(accept4(listener.fd, nullptr, nullptr, SOCK_CLOEXEC));
    Hello hello = {};
    // Whoever is not of this group is left alone, and may not keep the others waiting for long.
    if (peer.fd < 0 || !is_same_user(peer.fd) || !readable(peer.fd, Clock::now() + std::chrono::seconds(1))) continue;
    if (recv(peer.fd, &hello, sizeof hello, 0) != sizeof hello || hello.id.token != id.token) continue;
    if (const std::string text = objection(hello, world_size, ranks); !text.empty()) {
      send_answer(peer.fd, text, -1);
      for (const Socket& rank : ranks)
        if (rank.fd >= 0) send_answer(rank.fd, text, -1);
      throw error(text);
    }
    ranks[hello.rank] = std::move(peer);
    ++num_joined;
  }
  return ranks;
}

std::unique_ptr<SharedMemory> lead(const UniqueId& id, int world_size, uint64_t group, double timeout) {
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout));
  const std::vector<Socket> ranks = accept_ranks(id, world_size, timeout, deadline);
  const Socket segment(SharedMemory::create_segment(world_size));
  auto transport = std::make_unique<SharedMemory>(segment.fd, 0, world_size, group);
  for (int rank = 1; rank < world_size; ++rank) send_answer(ranks[rank].fd, "", segment.fd);
  Answer mapped;
  for (int rank = 1; rank < world_size; ++rank)
    if (!readable(ranks[rank].fd, deadline) || recv(ranks[rank].fd, &mapped, sizeof mapped, 0) != sizeof mapped)
      throw error("rank " + std::to_string(rank) + " ended before all ranks had joined");
  for (int rank = 1; rank < world_size; ++rank) send_answer(ranks[rank].fd, "", -1);
  return transport;
}

Socket connect_to_rank_0(const UniqueId& id, double timeout, Clock::time_point deadline) {
  const auto [address, size] = address_of(id);
  while (true) {
    Socket connection = new_socket();
    if (connect(connection.fd, reinterpret_cast<const sockaddr*>(&address), size) == 0) return connection;
    if (Clock::now() >= deadline)
      throw error("rank 0 must join within " + std::to_string(static_cast<int>(timeout)) + " s, it did not");
    usleep(2000);
  }
}

std::unique_ptr<SharedMemory> follow(const UniqueId& id, int rank, int world_size, uint64_t group, double timeout) {
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout));
  const Socket leader = connect_to_rank_0(id, timeout, deadline);
  if (!is_same_user(leader.fd)) throw error("rank 0 must be a process of this user");
  const Hello hello = {kVersion, rank, world_size, id};
  send(leader.fd, &hello, sizeof hello, MSG_NOSIGNAL);
  // Rank 0 knows who is missing: it gets a second more to say so.
  const auto last = deadline + std::chrono::seconds(1);
  if (!readable(leader.fd, last))
    throw error("rank 0 must answer within " + std::to_string(static_cast<int>(timeout)) + " s");
  const Socket segment(receive_answer(leader.fd));
  auto transport = std::make_unique<SharedMemory>(segment.fd, rank, world_size, group);
  send_answer(leader.fd, "", -1);
  if (!readable(leader.fd, last)) throw error("all ranks must map the shared memory within the timeout");
  receive_answer(leader.fd);
  return transport;
}

}  // namespace

UniqueId UniqueId::create() {
  UniqueId id;
  if (getrandom(&id, sizeof id, 0) != sizeof id) throw system_error("the system gave no random bytes");
  return id;
}

std::unique_ptr<Transport> join(const UniqueId& id, int rank, int world_size, double timeout) {
  if (world_size < 1 || rank < 0 || rank >= world_size)
    throw std::invalid_argument("communicator: rank must be in [0, world_size), got " + std::to_string(rank) +
                                "; world_size " + std::to_string(world_size));
  uint64_t group;
  std::memcpy(&group, id.name.data(), sizeof group);
  auto transport = rank == 0 ? lead(id, world_size, group, timeout) : follow(id, rank, world_size, group, timeout);
  transport->watch_peers();
  return transport;
}

}  // namespace fusionkit_parallel
