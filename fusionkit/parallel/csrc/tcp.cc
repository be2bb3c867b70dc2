#include "tcp.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <stdexcept>

namespace fusionkit_parallel {
namespace {

// Bytes that the kernel holds and has not sent: enough for a fast link, and little enough that what has been written
// has as good as left, which `in_turn` relies on. Twice as many wakes, at 256 KiB, cost 0.2% of a core at 200 Mbit/s.
constexpr int kUnsentBytes = 512 << 10;
constexpr std::chrono::seconds kLastWords(1);
constexpr double kHostSeconds = 60;  // without an answer of the peer's kernel

void set(int fd, int level, int option, int value) {
  if (setsockopt(fd, level, option, &value, sizeof value) != 0) throw system_error("a socket option was refused");
}

void set_up(int fd, double patience) {
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(1000 * std::min(std::max(patience, 1.0), 1e6)));
}

// Seconds of silence, of which three probes take half.
void keep_alive(int fd, double patience) {
  const int seconds = std::max(1, static_cast<int>(patience / 6));
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 3 * seconds);
  set(fd, IPPROTO_TCP, TCP_KEEPINTVL, seconds);
  set(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

enum Tag : uint64_t { kData, kControl, kWake };

uint64_t tag_of(int peer, Tag tag) { return static_cast<uint64_t>(peer) << 2 | tag; }

}  // namespace

Tcp::Tcp(std::vector<Link> links, int rank, uint64_t group, double timeout)
    : Transport(rank, static_cast<int>(links.size()), group),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      event_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (epoll_.fd < 0 || event_.fd < 0) throw system_error("the system refused an epoll or an eventfd");
  watch(event_.fd);
  const double patience = std::min(timeout, kHostSeconds);
  for (Link& link : links) {
    if (link.data.fd < 0) {
      peers_.push_back(nullptr);
      continue;
    }
    // A peer that does not read is not a lost host: the kernel may not give up on data before the communicator does.
    set_up(link.data.fd, timeout + 1);
    set(link.data.fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, kUnsentBytes);
    set_up(link.control.fd, patience);
    keep_alive(link.control.fd, patience);
    const int peer = static_cast<int>(peers_.size());
    add(link.data.fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP, tag_of(peer, kData));
    add(link.control.fd, EPOLLIN | EPOLLRDHUP, tag_of(peer, kControl));
    peers_.push_back(std::make_unique<Peer>(std::move(link)));
  }
}

Tcp::~Tcp() {
  for (const auto& peer : peers_) {
    if (peer == nullptr) continue;
    peer->control.leave();
    peer->data.leave();
  }
}

size_t Tcp::write(int peer, const char* data, size_t size, bool more) {
  return peers_[peer]->data.write(data, size, more);
}

size_t Tcp::read(int peer, char* into, size_t size) { return peers_[peer]->data.read(into, size); }

Bytes Tcp::arrived(int peer, size_t wanted) { return peers_[peer]->data.arrived(wanted); }

void Tcp::consumed(int peer, size_t num_bytes) { peers_[peer]->data.consumed(num_bytes); }

void Tcp::add(int fd, uint32_t events, uint64_t tag) {
  epoll_event event = {};
  event.events = events | EPOLLET;
  event.data.u64 = tag;
  if (epoll_ctl(epoll_.fd, EPOLL_CTL_ADD, fd, &event) != 0) throw system_error("the system refused to watch a socket");
}

void Tcp::watch(int event) { add(event, EPOLLIN, tag_of(0, kWake)); }

void Tcp::wait(uint32_t seen, int64_t microseconds) {
  sleeps_ = true;  // before the comparison: a wake after it writes the event
  if (changes() == seen) sleep(microseconds);
  sleeps_ = false;
}

void Tcp::sleep(int64_t microseconds) {
  epoll_event events[64];
  const int num_events = epoll_wait(epoll_.fd, events, 64, static_cast<int>((microseconds + 999) / 1000));
  for (int i = 0; i < num_events; ++i) take(events[i].data.u64, events[i].events);
  if (num_events != 0 || microseconds == 0) return;
  // Should the kernel not tell of fewer bytes than SO_RCVLOWAT that are the last to come: a look after a whole sleep
  // costs one call.
  for (const auto& peer : peers_)
    if (peer != nullptr) peer->data.may_read = true;
}

void Tcp::take(uint64_t tag, uint32_t events) {
  if ((tag & 3) == kWake) return;  // edge-triggered: it need not be read
  Peer& peer = *peers_[tag >> 2];
  if ((tag & 3) == kControl) {
    peer.control.may_hear = true;
    return;
  }
  if ((events & ~EPOLLOUT) != 0) peer.data.may_read = true;
  if ((events & ~(EPOLLIN | EPOLLRDHUP)) != 0) peer.data.may_write = true;
}

void Tcp::wake() {
  ++wakes_;
  if (sleeps_.load()) eventfd_write(event_.fd, 1);
}

std::string Tcp::lost(int peer) {
  Peer& of = *peers_[peer];
  of.control.may_hear = true;
  of.control.hear();
  if (!of.control.failure().empty()) return "";  // `failure` tells
  // A rank that has left has sent all before the end of its data.
  if (of.control.has_left()) return of.data.end().empty() ? "" : "a rank that has left";
  std::string why = of.control.end();
  if (why.empty() && !of.data.end().empty()) {  // what the peer has to say may be on its way
    if (of.silent_since == Clock::time_point()) of.silent_since = Clock::now();
    if (Clock::now() - of.silent_since > kLastWords) why = of.data.end();
  }
  if (why.empty()) return "";
  return "a process that has ended, or a host that cannot be reached (" + of.address + ": " + why + ")";
}

void Tcp::fail(const std::string& text) {
  if (failure_.empty()) failure_ = text;
  for (const auto& peer : peers_)
    if (peer != nullptr) peer->control.tell_failure(text);
}

std::string Tcp::failure() {
  for (const auto& peer : peers_) {
    if (peer == nullptr) continue;
    peer->control.hear();
    if (failure_.empty()) failure_ = peer->control.failure();
  }
  return failure_;
}

}  // namespace fusionkit_parallel
