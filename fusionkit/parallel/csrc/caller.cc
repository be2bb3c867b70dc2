#include "caller.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace fusionkit_parallel {
namespace {

// The peer listens by now, and its kernel answers for it: five packets in a row would have to be lost.
constexpr double kConnectSeconds = 20;

}  // namespace

std::string loopback_note(const std::string& address) {
  if (address.compare(0, 4, "127.") != 0 && address != "::1" && address != "localhost") return "";
  return "; " + address + " is loopback, which leads every host to itself: pass an address that the other hosts reach";
}

Caller::Caller(const Member& member, int peer, const Greeting& greeting)
    : peer(peer),
      purpose(greeting.purpose),
      until_(deadline_in(kConnectSeconds)),
      where_(member.address + " port " + std::to_string(member.port)),
      note_(loopback_note(member.address)),
      greeting_(greeting) {
  addrinfo wanted = {}, *found = nullptr;
  wanted.ai_socktype = SOCK_STREAM;
  const std::string port = std::to_string(member.port);
  if (const int status = getaddrinfo(member.address.c_str(), port.c_str(), &wanted, &found); status != 0)
    throw error(gai_strerror(status));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owned(found, &freeaddrinfo);
  socket_ = Socket(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (socket_.fd < 0) throw system_error("no socket could be opened");
  if (connect(socket_.fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS)
    throw error(std::strerror(errno));
}

short Caller::awaited() const { return is_connected_ ? POLLIN : POLLOUT; }

bool Caller::advance(const GroupKey& key) {
  if (!is_connected_) {
    pollfd one = {socket_.fd, POLLOUT, 0};
    if (poll(&one, 1, 0) != 1) {
      if (milliseconds_until(until_) == 0) throw error("nothing within " + seconds(kConnectSeconds));
      return false;
    }
    int status = 0;
    socklen_t size = sizeof status;
    getsockopt(socket_.fd, SOL_SOCKET, SO_ERROR, &status, &size);
    if (status != 0) throw error(std::strerror(status));
    is_connected_ = true;
    send(socket_.fd, &greeting_, sizeof greeting_, MSG_NOSIGNAL);
  }
  char* into = reinterpret_cast<char*>(&welcome_) + received_;
  const ssize_t n = recv(socket_.fd, into, sizeof welcome_ - received_, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (n <= 0) throw error(n == 0 ? "an end of the connection" : std::strerror(errno));
  received_ += static_cast<size_t>(n);
  if (received_ < sizeof welcome_) return false;
  if (!is_same_secret(welcome_.word.data(), key.called.data(), key.called.size()))
    throw error("an answer without the group's word");
  welcome_.refused[sizeof welcome_.refused - 1] = '\0';
  if (welcome_.refused[0] != '\0') throw joining_error(welcome_.refused);
  return true;
}

std::runtime_error Caller::error(const std::string& got) const {
  return joining_error("rank " + std::to_string(peer) + " must accept a connection at " + where_ + ", got " + got +
                       "; rank " + std::to_string(greeting_.rank) + " of " + std::to_string(greeting_.world_size) +
                       note_ + ". See whether that rank runs, and whether its address can be reached from this host");
}

}  // namespace fusionkit_parallel
