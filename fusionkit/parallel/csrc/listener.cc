#include "listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

namespace fusionkit_parallel {
namespace {

constexpr int kBacklog = 512;
constexpr size_t kMostStrangers = 256;
constexpr double kStrangerSeconds = 5;

int port_of(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

}  // namespace

GroupKey GroupKey::create() {
  GroupKey key;
  if (getrandom(&key, sizeof key, 0) != sizeof key) throw system_error("the system gave no random bytes");
  return key;
}

Listener::Listener(const std::string& address) {
  addrinfo wanted = {}, *found = nullptr;
  wanted.ai_socktype = SOCK_STREAM;
  if (const int status = getaddrinfo(address.c_str(), "0", &wanted, &found); status != 0)
    throw joining_error("address must be one of this host, got " + address + " (" + gai_strerror(status) + ")");
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owned(found, &freeaddrinfo);
  socket_ = Socket(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (socket_.fd < 0) throw system_error("no socket could be opened");
  if (bind(socket_.fd, found->ai_addr, found->ai_addrlen) != 0 || listen(socket_.fd, kBacklog) != 0)
    throw system_error("address must be one of this host, got " + address);
  sockaddr_storage bound = {};
  socklen_t size = sizeof bound;
  getsockname(socket_.fd, reinterpret_cast<sockaddr*>(&bound), &size);
  port_ = port_of(bound);
}

std::vector<int> Admission::fds() const {
  std::vector<int> all = {listener_.fd()};
  for (const Stranger& each : strangers_) all.push_back(each.socket.fd);
  return all;
}

std::vector<Admission::Admitted> Admission::admit() {
  accept_all();
  std::vector<Admitted> admitted;
  for (auto each = strangers_.begin(); each != strangers_.end();) {
    if (hear(*each)) {
      ++each;
      continue;
    }
    if (each->socket.fd >= 0 && each->received == sizeof(Greeting))
      admitted.push_back({std::move(each->socket), each->greeting});
    each = strangers_.erase(each);
  }
  return admitted;
}

void Admission::accept_all() {
  while (true) {
    Socket accepted(accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (accepted.fd < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      // Out of descriptors: the connection stays in the queue, and a poll would return at once.
      if (errno != EAGAIN && errno != EWOULDBLOCK) usleep(10000);
      return;
    }
    if (strangers_.size() >= kMostStrangers) strangers_.erase(strangers_.begin());
    strangers_.push_back({std::move(accepted), deadline_in(kStrangerSeconds)});
  }
}

bool Admission::hear(Stranger& stranger) {
  auto* into = reinterpret_cast<char*>(&stranger.greeting) + stranger.received;
  const ssize_t n = recv(stranger.socket.fd, into, sizeof(Greeting) - stranger.received, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return milliseconds_until(stranger.until) > 0;
  if (n > 0) stranger.received += static_cast<size_t>(n);
  constexpr size_t kWord = sizeof(GroupKey::Word);
  const bool is_ours =
      stranger.received < kWord || is_same_secret(stranger.greeting.word.data(), key_.caller.data(), kWord);
  if (n <= 0 || !is_ours) stranger.socket = Socket();
  return stranger.socket.fd >= 0 && stranger.received < sizeof(Greeting);
}

void Admission::welcome(int fd, const std::string& refused) const {
  Welcome answer = {};
  answer.word = key_.called;
  std::strncpy(answer.refused, refused.c_str(), sizeof answer.refused - 1);
  send(fd, &answer, sizeof answer, MSG_NOSIGNAL | MSG_DONTWAIT);  // an empty send buffer holds it
}

}  // namespace fusionkit_parallel
