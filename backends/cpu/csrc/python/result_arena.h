// Results in memory that is there already.
#pragma once

#include <cstddef>

#include "arrays.h"

namespace fusionkit_cpu {

constexpr size_t kAlignment = 64;  // bytes of a cache line, at which results begin

// While one is entered on a thread, empty() takes from it there, so that a benchmark times kernels and not the
// operating system's handing out of pages. Entering starts again at the beginning, over what was there.
class ResultArena {
 public:
  explicit ResultArena(size_t num_bytes);  // touches every page
  ~ResultArena();
  ResultArena(const ResultArena&) = delete;
  ResultArena& operator=(const ResultArena&) = delete;

  void enter();
  void leave();
  void* take(size_t num_bytes);  // at a multiple of kAlignment

  static ResultArena* active();  // of this thread, or null

 private:
  size_t size_, used_ = 0;
  char* data_;
  bool is_entered_ = false;
  ResultArena* outer_ = nullptr;
};

}  // namespace fusionkit_cpu
