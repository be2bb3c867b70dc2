// The transport of a group over several hosts: shared memory to the ranks of this host, TCP to the others.
#pragma once

#include <memory>
#include <vector>

#include "shared_memory.h"
#include "tcp.h"
#include "transport.h"

namespace fusionkit_parallel {

class Mixed : public Transport {
 public:
  // neighbours: the ranks of this host, this one too, in the order of `near`.
  Mixed(std::unique_ptr<SharedMemory> near, std::unique_ptr<Tcp> far, const std::vector<int>& neighbours);

  size_t write(int peer, const char* data, size_t size, bool more) override;
  size_t read(int peer, char* into, size_t size) override;
  Bytes arrived(int peer, size_t wanted) override;
  void consumed(int peer, size_t num_bytes) override;
  int num_near() const override { return near_->world_size; }
  uint32_t changes() override { return near_->changes() + far_->changes(); }
  void wait(uint32_t seen, int64_t microseconds) override;
  void wake() override { near_->wake(); }
  std::string lost(int peer) override;
  void fail(const std::string& text) override;
  std::string failure() override;

 private:
  bool is_near(int peer) const { return place_[peer] >= 0; }

  std::unique_ptr<SharedMemory> near_;
  std::unique_ptr<Tcp> far_;
  std::vector<int> place_;  // of each rank in `near_`, or -1
};

}  // namespace fusionkit_parallel
