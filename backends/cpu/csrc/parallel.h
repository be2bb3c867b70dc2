// Static shares of a loop over OpenMP threads. The region itself is in threads.cc, so that code compiled for one
// instruction set holds no exception handling and no template shared with another.
#pragma once

#include <cstdint>

#include "fusionkit_cpu.h"

namespace fusionkit_cpu {

// Shares of at least `grain` iterations each, at most num_threads() of them, at least one.
int num_shares(int64_t n, int64_t grain);

using ShareBody = void (*)(void* context, int64_t begin, int64_t end, int share);
void run_shares(int64_t n, int shares, ShareBody body, void* context);

// f(begin, end, thread) over contiguous shares of [0, n); thread < num_shares(n, grain), whatever number of OpenMP
// threads was granted, so results depend on num_threads() only. The first exception is rethrown after the region.
template <class F>
static inline void parallel_for(int64_t n, int64_t grain, F f) {
  if (n <= 0) return;
  run_shares(
      n, num_shares(n, grain),
      [](void* context, int64_t begin, int64_t end, int share) { (*static_cast<F*>(context))(begin, end, share); }, &f);
}

}  // namespace fusionkit_cpu
