// Calls that were started together and are not awaited yet.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dtype.h"
#include "reduce.h"

namespace fusionkit_parallel {

// The elements that peers send, reduced in the order of ranks as they arrive.
struct Reduction {
  DType dtype;
  ReduceOp op;
  const char* own;
  char* out;
  size_t size;      // bytes
  size_t done = 0;  // bytes of `out` that are final
};

class Work {
 public:
  bool is_done() const;
  // Returns when all results are there; throws when the communicator failed before.
  void wait() const;
  // The same, for no longer than this: false when they are not there yet.
  bool wait_for(std::chrono::milliseconds time) const;

 private:
  friend class Channel;
  friend class Communicator;

  void finish(const std::string& failure);

  // These three are the communicator's, under its lock.
  size_t num_pending_ = 0;  // messages still to move
  std::vector<std::unique_ptr<Reduction>> reductions_;
  std::vector<std::unique_ptr<char[]>> staging_;

  mutable std::mutex mutex_;
  mutable std::condition_variable finished_;
  bool is_done_ = false;
  std::string failure_;
};

}  // namespace fusionkit_parallel
