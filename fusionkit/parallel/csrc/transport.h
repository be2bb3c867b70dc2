// How bytes get from rank to rank: an ordered, bounded stream for each pair. Algorithms know nothing below this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fusionkit_parallel {

struct Bytes {
  char* data;
  size_t size;
};

// Nothing here blocks but `wait`. Streams begin at, and buffers wrap at, multiples of kAlignment.
class Transport {
 public:
  static constexpr size_t kAlignment = 64;

  Transport(int rank, int world_size, uint64_t group) : rank(rank), world_size(world_size), group(group) {}
  virtual ~Transport() = default;

  const int rank, world_size;
  const uint64_t group;  // the same number on all ranks, another for every communicator

  // Room for bytes to a peer, in one piece, perhaps empty; and how many of them were written.
  virtual Bytes room(int peer) = 0;
  virtual void produced(int peer, size_t num_bytes) = 0;
  // Bytes that came from a peer, in one piece, perhaps none; and how many of them were read.
  virtual Bytes arrived(int peer) = 0;
  virtual void consumed(int peer, size_t num_bytes) = 0;

  // A number that differs after a peer wrote, read, failed or left; and to sleep until it is no longer `seen`.
  virtual uint32_t changes() = 0;
  virtual void wait(uint32_t seen, int64_t microseconds) = 0;

  // Why a peer will neither write nor read any more, or "".
  virtual std::string lost(int peer) = 0;
  // Tells all ranks that this communicator is broken; the first text is the one that `failure` returns everywhere.
  virtual void fail(const std::string& text) = 0;
  virtual std::string failure() = 0;
};

}  // namespace fusionkit_parallel
