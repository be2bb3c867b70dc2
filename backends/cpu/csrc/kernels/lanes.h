// One vector from or to memory when n elements are left, with any stride, and its rounding.
#pragma once

#include "kernels/simd.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

template <class T>
inline Vec round_through(Vec a) {
  T rounded[kLanes];
  store(rounded, a);
  return load(rounded);
}

inline Vec round_vector(DType dtype, Vec a) {
  if (dtype == DType::kBFloat16) return round_through<BFloat16>(a);
  if (dtype == DType::kFloat16) return round_through<Float16>(a);
  return a;
}

template <class T>
inline Vec load_lanes(const T* from, int64_t stride, int64_t n) {
  if (stride == 1) return n >= kLanes ? load(from) : load_partial(from, n);
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < n && i < kLanes; ++i) lanes[i] = to_float(from[i * stride]);
  return load(lanes);
}

template <class T>
inline void store_lanes(T* to, int64_t n, Vec a) {
  if (n >= kLanes)
    store(to, a);
  else
    store_partial(to, a, n);
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
