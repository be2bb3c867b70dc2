// Sums of products over contiguous rows, in a form that compilers turn into vector code.
#pragma once

#include <cstdint>

namespace fusionkit_emulator {

// Sixteen sums side by side: a single one could not be vectorised without reordering it.
template <typename Sum, typename Term>
Sum sum_over(int64_t n, Term term) {
  constexpr int kLanes = 16;
  Sum lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (; i < n; ++i) lanes[0] += term(i);
  Sum total = 0;
  for (const Sum& lane : lanes) total += lane;
  return total;
}

inline float dot(const float* a, const float* b, int64_t n) {
  return sum_over<float>(n, [=](int64_t i) { return a[i] * b[i]; });
}

// y += factor * x
inline void add_scaled(float factor, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

}  // namespace fusionkit_emulator
