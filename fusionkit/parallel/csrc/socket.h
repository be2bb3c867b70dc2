// What the files that open sockets share.
#pragma once

#include <chrono>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

namespace fusionkit_parallel {

// Owns a file descriptor.
class Socket {
 public:
  explicit Socket(int fd = -1) : fd(fd) {}
  Socket(Socket&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd, other.fd);
    return *this;
  }
  ~Socket();

  int fd;
};

using Deadline = std::chrono::steady_clock::time_point;

Deadline deadline_in(double seconds);
std::string seconds(double value);  // for people
constexpr int kWatchMilliseconds = 200;

int milliseconds_until(Deadline deadline);  // at least 0
// Called with null every 200 ms while a rank joins: throws when another rank has failed. Called with the text of this
// rank's own failure before its connections end, so that their ends are not taken for the first failure.
using Watch = std::function<void(const char* own_failure)>;
bool readable(int fd, Deadline deadline, const Watch& watch = nullptr);

std::runtime_error joining_error(const std::string& text);
std::runtime_error system_error(const std::string& what);  // with errno's text

// Without telling, by the time that it takes, how much is right.
bool is_same_secret(const unsigned char* a, const unsigned char* b, size_t size);

}  // namespace fusionkit_parallel
