#include "stream.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace fusionkit_parallel {
namespace {

constexpr size_t kBufferBytes = 256 << 10;
// What comes behind a plan in the same system call: a small message is there at once.
constexpr size_t kReadAheadBytes = 4 << 10;
// A thread that shares its core with arithmetic is woken for this much of a long message, not for each packet: 64 KiB
// kept a core busy for 2.9% at 200 Mbit/s, 256 KiB for 2.3%.
constexpr size_t kWakeBytes = 256 << 10;
constexpr size_t kCallBytes = 1 << 20;

}  // namespace

Stream::Stream(Socket socket)
    : socket_(std::move(socket)),
      buffer_(static_cast<char*>(std::aligned_alloc(Transport::kAlignment, kBufferBytes)), &std::free) {
  if (buffer_ == nullptr) throw std::bad_alloc();
}

size_t Stream::write(const char* data, size_t size, bool more) {
  while (end_.empty() && may_write.load()) {
    may_write = false;
    const size_t wanted = std::min(size, kCallBytes);
    const int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (more || wanted < size ? MSG_MORE : 0);
    const ssize_t n = send(socket_.fd, data, wanted, flags);
    if (n >= 0) {
      if (static_cast<size_t>(n) == wanted) may_write = true;
      return static_cast<size_t>(n);
    }
    if (errno == EINTR) {
      may_write = true;
    } else if (errno != EAGAIN && errno != EWOULDBLOCK) {
      ended(std::strerror(errno));
    }
  }
  return 0;
}

size_t Stream::read(char* into, size_t size) {
  const size_t buffered = std::min(end_of_data_ - begin_, size);
  if (buffered != 0) {
    std::memcpy(into, buffer_.get() + begin_, buffered);
    consumed(buffered);
    return buffered;
  }
  const size_t n = receive(into, std::min(size, kCallBytes));
  begin_ = end_of_data_ = (begin_ + n) % Transport::kAlignment;
  if (n < size && !may_read.load()) wake_at(size - n);
  return n;
}

Bytes Stream::arrived(size_t wanted) {
  if (end_of_data_ - begin_ < wanted) fill(wanted);
  return {buffer_.get() + begin_, std::min(end_of_data_ - begin_, wanted)};
}

void Stream::consumed(size_t num_bytes) {
  begin_ += num_bytes;
  if (begin_ == end_of_data_) begin_ = end_of_data_ = begin_ % Transport::kAlignment;
}

void Stream::fill(size_t wanted) {
  const size_t front = begin_ % Transport::kAlignment;
  if (begin_ != front && begin_ + wanted > kBufferBytes) {
    std::memmove(buffer_.get() + front, buffer_.get() + begin_, end_of_data_ - begin_);
    end_of_data_ -= begin_ - front;
    begin_ = front;
  }
  const size_t rest = wanted - (end_of_data_ - begin_);
  const size_t asked = std::min(std::max(rest, kReadAheadBytes), kBufferBytes - end_of_data_);
  const size_t n = asked == 0 ? 0 : receive(buffer_.get() + end_of_data_, asked);
  end_of_data_ += n;
  if (n < rest && !may_read.load()) wake_at(rest - n);
}

size_t Stream::receive(char* into, size_t size) {
  while (end_.empty() && may_read.load()) {
    may_read = false;
    const ssize_t n = recv(socket_.fd, into, size, MSG_DONTWAIT);
    if (n > 0) {
      if (static_cast<size_t>(n) == size) may_read = true;
      return static_cast<size_t>(n);
    }
    if (n == 0) {
      ended("the connection was closed");
    } else if (errno == EINTR) {
      may_read = true;
    } else if (errno != EAGAIN && errno != EWOULDBLOCK) {
      ended(std::strerror(errno));
    }
  }
  return 0;
}

void Stream::wake_at(size_t num_bytes) {
  const int wanted = static_cast<int>(std::min(num_bytes, kWakeBytes));
  if (wanted == wake_at_) return;
  if (setsockopt(socket_.fd, SOL_SOCKET, SO_RCVLOWAT, &wanted, sizeof wanted) == 0) wake_at_ = wanted;
}

void Stream::ended(const char* why) { end_ = why; }

void Stream::leave() {
  shutdown(socket_.fd, SHUT_WR);
  // Bytes that nobody has read would make the kernel reset the connection, and drop what was written.
  char rest[4096];
  while (recv(socket_.fd, rest, sizeof rest, MSG_DONTWAIT) > 0) continue;
}

}  // namespace fusionkit_parallel
