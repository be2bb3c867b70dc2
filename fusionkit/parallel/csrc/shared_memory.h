// The transport within one host: a ring of bytes for each ordered pair of ranks, in memory that all of them map.
#pragma once

#include <atomic>
#include <vector>

#include "transport.h"

namespace fusionkit_parallel {

// Takes part in a segment that `create_segment` made; `fd` may be closed afterwards.
class SharedMemory : public Transport {
 public:
  SharedMemory(int fd, int rank, int world_size, uint64_t group);
  ~SharedMemory() override;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // A segment without a name: nothing is left behind, however its processes end.
  static int create_segment(int world_size);

  size_t write(int peer, const char* data, size_t size) override;
  size_t read(int peer, char* into, size_t size) override;
  Bytes arrived(int peer, size_t wanted) override;
  void consumed(int peer, size_t num_bytes) override;
  uint32_t changes() override;
  void wait(uint32_t seen, int64_t microseconds) override;
  void wake() override;
  std::string lost(int peer) override;
  void fail(const std::string& text) override;
  std::string failure() override;

  // Opens a handle on each peer's process, by the ids that all ranks have written by now.
  void watch_peers();

 private:
  struct Failure;
  struct Seat;
  struct Ring;

  Seat& seat(int rank) const;
  Ring& ring(int source, int destination) const;
  void notify(int peer);

  char* segment_ = nullptr;
  std::vector<int> processes_;  // a pidfd for each rank, -1 for this process
};

}  // namespace fusionkit_parallel
