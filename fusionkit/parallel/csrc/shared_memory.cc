#include "shared_memory.h"

#include <linux/futex.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <ctime>
#include <utility>

namespace fusionkit_parallel {
namespace {

// A quarter of a second-level cache of 1 MiB. Other sizes were not compared.
constexpr size_t kRingBytes = 256 << 10;
// So that a peer begins with a message before it is all there, and writes before all was read.
constexpr size_t kPieceBytes = 64 << 10;

}  // namespace

struct SharedMemory::Failure {
  std::atomic<uint32_t> state;  // 0: none, 1: being written, 2: written
  char text[1020];
};

struct alignas(64) SharedMemory::Seat {
  std::atomic<uint32_t> changes;   // what the rank sleeps on
  std::atomic<uint32_t> sleepers;  // nobody is woken when it is 0
  std::atomic<uint32_t> has_left;
  std::atomic<int32_t> pid;
};

struct SharedMemory::Ring {
  alignas(64) std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> read;
  alignas(64) char data[kRingBytes];
};

static_assert(std::atomic<uint64_t>::is_always_lock_free, "processes share these atomics");

size_t SharedMemory::segment_size(int world_size) {
  return sizeof(Failure) + world_size * sizeof(Seat) + sizeof(Ring) * world_size * world_size;
}

SharedMemory::SharedMemory(std::shared_ptr<Segment> segment, std::vector<Socket> events, int rank, int world_size,
                           uint64_t group)
    : Transport(rank, world_size, group),
      segment_(std::move(segment)),
      events_(std::move(events)),
      processes_(world_size) {
  seat(rank).pid.store(getpid());
}

SharedMemory::~SharedMemory() {
  seat(rank).has_left.store(1);
  for (int peer = 0; peer < world_size; ++peer) notify(peer);
}

SharedMemory::Seat& SharedMemory::seat(int rank) const {
  return *reinterpret_cast<Seat*>(segment_->memory + sizeof(Failure) + rank * sizeof(Seat));
}

SharedMemory::Ring& SharedMemory::ring(int source, int destination) const {
  char* rings = segment_->memory + sizeof(Failure) + world_size * sizeof(Seat);
  return *reinterpret_cast<Ring*>(rings + sizeof(Ring) * (source * world_size + destination));
}

void SharedMemory::watch_peers() {
  for (int peer = 0; peer < world_size; ++peer) {
    const int pid = seat(peer).pid.load();
    if (pid != getpid()) processes_[peer] = Socket(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  }
}

size_t SharedMemory::write(int peer, const char* data, size_t size, bool) {
  Ring& to = ring(rank, peer);
  const uint64_t written = to.written.load(std::memory_order_relaxed);
  const size_t free = kRingBytes - (written - to.read.load(std::memory_order_acquire));
  const size_t at = written % kRingBytes, n = std::min({size, free, kRingBytes - at, kPieceBytes});
  if (n == 0) return 0;
  std::memcpy(to.data + at, data, n);
  to.written.store(written + n, std::memory_order_release);
  notify(peer);
  return n;
}

size_t SharedMemory::read(int peer, char* into, size_t size) {
  const Bytes from = arrived(peer, size);
  const size_t n = std::min({size, from.size, kPieceBytes});
  if (n == 0) return 0;
  std::memcpy(into, from.data, n);
  consumed(peer, n);
  return n;
}

Bytes SharedMemory::arrived(int peer, size_t wanted) {
  Ring& from = ring(peer, rank);
  const uint64_t read = from.read.load(std::memory_order_relaxed);
  const size_t available = from.written.load(std::memory_order_acquire) - read;
  const size_t at = read % kRingBytes;
  return {from.data + at, std::min({available, kRingBytes - at, wanted})};
}

void SharedMemory::consumed(int peer, size_t num_bytes) {
  Ring& from = ring(peer, rank);
  from.read.store(from.read.load(std::memory_order_relaxed) + num_bytes, std::memory_order_release);
  notify(peer);
}

bool SharedMemory::was_read_by(int peer) {
  const Ring& to = ring(rank, peer);
  return to.read.load(std::memory_order_acquire) == to.written.load(std::memory_order_relaxed);
}

uint32_t SharedMemory::changes() { return seat(rank).changes.load(); }

void SharedMemory::notify(int peer) {
  Seat& other = seat(peer);
  other.changes.fetch_add(1);
  if (other.sleepers.load() == 0) return;
  if (events_.empty())
    syscall(SYS_futex, &other.changes, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  else
    eventfd_write(events_[peer].fd, 1);
}

void SharedMemory::before_sleep() { seat(rank).sleepers.fetch_add(1); }

void SharedMemory::after_sleep() { seat(rank).sleepers.fetch_sub(1); }

void SharedMemory::wait(uint32_t seen, int64_t microseconds) {
  Seat& own = seat(rank);
  // A peer that runs answers in a few microseconds; a sleep and a wake cost some fifty.
  for (int spins = 0; spins < 200; ++spins) {
    if (own.changes.load() != seen) return;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  if (microseconds == 0) return;
  const timespec limit = {microseconds / 1000000, microseconds % 1000000 * 1000};
  before_sleep();
  syscall(SYS_futex, &own.changes, FUTEX_WAIT, seen, &limit, nullptr, 0);
  after_sleep();
}

void SharedMemory::wake() { notify(rank); }

std::string SharedMemory::lost(int peer) {
  if (seat(peer).has_left.load() != 0) return "a rank that has left";
  pollfd process = {processes_[peer].fd, POLLIN, 0};
  if (processes_[peer].fd < 0 || poll(&process, 1, 0) != 1) return "";
  return "a process that has ended (pid " + std::to_string(seat(peer).pid.load()) + ")";
}

void SharedMemory::fail(const std::string& text) {
  auto& failure = *reinterpret_cast<Failure*>(segment_->memory);
  uint32_t none = 0;
  if (failure.state.compare_exchange_strong(none, 1)) {
    std::strncpy(failure.text, text.c_str(), sizeof failure.text - 1);
    failure.state.store(2);
  }
  for (int peer = 0; peer < world_size; ++peer) notify(peer);
}

std::string SharedMemory::failure() {
  const auto& failure = *reinterpret_cast<const Failure*>(segment_->memory);
  return failure.state.load() == 2 ? failure.text : "";
}

}  // namespace fusionkit_parallel
