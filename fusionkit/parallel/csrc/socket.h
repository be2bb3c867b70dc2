// What the files that open sockets share.
#pragma once

#include <chrono>
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
std::string seconds(double value);          // for people
int milliseconds_until(Deadline deadline);  // at least 0
bool readable(int fd, Deadline deadline);

std::runtime_error joining_error(const std::string& text);
std::runtime_error system_error(const std::string& what);  // with errno's text

// Without telling, by the time that it takes, how much is right.
bool is_same_secret(const unsigned char* a, const unsigned char* b, size_t size);

}  // namespace fusionkit_parallel
