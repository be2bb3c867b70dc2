// The transport within one host: a ring of bytes for each ordered pair of ranks, in memory that all of them map.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "segment.h"
#include "socket.h"
#include "transport.h"

namespace fusionkit_parallel {

class SharedMemory : public Transport {
 public:
  // events: an eventfd for each rank, by which all ranks are woken, from `before_sleep` to `after_sleep`, where they
  // wait for other things too; or none, for ranks that only call `wait`.
  SharedMemory(std::shared_ptr<Segment> segment, std::vector<Socket> events, int rank, int world_size, uint64_t group);
  ~SharedMemory() override;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  static size_t segment_size(int world_size);

  size_t write(int peer, const char* data, size_t size, bool more) override;
  size_t read(int peer, char* into, size_t size) override;
  Bytes arrived(int peer, size_t wanted) override;
  void consumed(int peer, size_t num_bytes) override;
  bool was_read_by(int peer) override;
  uint32_t changes() override;
  void wait(uint32_t seen, int64_t microseconds) override;
  void wake() override;
  std::string lost(int peer) override;
  void fail(const std::string& text) override;
  std::string failure() override;

  // Opens a handle on each peer's process, by the ids that all ranks have written by now.
  void watch_peers();

  int event() const { return events_[rank].fd; }
  void before_sleep();
  void after_sleep();

 private:
  struct Failure;
  struct Seat;
  struct Ring;

  Seat& seat(int rank) const;
  Ring& ring(int source, int destination) const;
  void notify(int peer);

  const std::shared_ptr<Segment> segment_;
  const std::vector<Socket> events_;
  std::vector<Socket> processes_;  // a pidfd for each rank, none for those of this process
};

}  // namespace fusionkit_parallel
