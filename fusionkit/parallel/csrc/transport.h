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

// Nothing here blocks but `wait`. One thread at a time calls; `wait` and `wake` may be called beside it.
class Transport {
 public:
  // Messages are padded to this, so that what arrives is aligned for every dtype.
  static constexpr size_t kAlignment = 64;

  Transport(int rank, int world_size, uint64_t group) : rank(rank), world_size(world_size), group(group) {}
  virtual ~Transport() = default;

  const int rank, world_size;
  const uint64_t group;  // the same number on all ranks, another for every communicator

  // Moves as many bytes as can be moved now, perhaps none, and says how many. more: others follow at once.
  virtual size_t write(int peer, const char* data, size_t size, bool more) = 0;
  virtual size_t read(int peer, char* into, size_t size) = 0;
  // Bytes that came from a peer, in one piece, perhaps none, to be read in place; and how many of them were read.
  // `wanted`: the rest of the message; no byte behind it is looked at.
  virtual Bytes arrived(int peer, size_t wanted) = 0;
  virtual void consumed(int peer, size_t num_bytes) = 0;
  // Whether a peer has read all that was written to it; true where that cannot be told.
  virtual bool was_read_by(int) { return true; }

  // How many ranks share the cores of this host, this one too.
  virtual int num_near() const { return world_size; }

  // A number that differs after a wake, or after a peer wrote, read, failed or left where that can be counted; and to
  // sleep until it is no longer `seen` or until a stream that moved nothing may move again, or 0 microseconds: to see
  // what the kernel has to tell.
  virtual uint32_t changes() = 0;
  virtual void wait(uint32_t seen, int64_t microseconds) = 0;
  virtual void wake() = 0;  // whoever waits on this rank

  // Why a peer will neither write nor read any more, or "".
  virtual std::string lost(int peer) = 0;
  // Tells all ranks that this communicator is broken; the first text is the one that `failure` returns.
  virtual void fail(const std::string& text) = 0;
  virtual std::string failure() = 0;
};

}  // namespace fusionkit_parallel
