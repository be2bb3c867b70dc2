#include "socket.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace fusionkit_parallel {

using Clock = std::chrono::steady_clock;

Socket::~Socket() {
  if (fd >= 0) close(fd);
}

Deadline deadline_in(double seconds) {
  constexpr double kLongest = 1e8;  // three years: more would overflow
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(std::min(seconds, kLongest)));
}

std::string seconds(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g s", value);
  return text;
}

int milliseconds_until(Deadline deadline) {
  constexpr int64_t kLongest = 1 << 30;
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, kLongest));
}

bool readable(int fd, Deadline deadline, const Watch& watch) {
  pollfd one = {fd, POLLIN, 0};
  while (true) {
    const int left = milliseconds_until(deadline);
    const int ready = poll(&one, 1, watch == nullptr ? left : std::min(left, kWatchMilliseconds));
    if (ready == 1) return true;
    if (ready == 0 && milliseconds_until(deadline) == 0) return false;
    if (watch != nullptr) watch(nullptr);
  }
}

std::runtime_error joining_error(const std::string& text) { return std::runtime_error("communicator: " + text); }

std::runtime_error system_error(const std::string& what) {
  return joining_error(what + " (" + std::strerror(errno) + ")");
}

bool is_same_secret(const unsigned char* a, const unsigned char* b, size_t size) {
  unsigned char difference = 0;
  for (size_t i = 0; i < size; ++i) difference |= a[i] ^ b[i];
  return difference == 0;
}

}  // namespace fusionkit_parallel
