// A row of floats as codes and the scale of all of them.
#pragma once

#include "kernels/attention_span.h"
#include "kernels/codes.h"
#include "kernels/lanes.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr float kLargestCode = 127;
constexpr float kSmallestScale = 1.17549435e-38f;  // float32's smallest normal number

// max |row| / 127, rounded to float32; NaN where the row is not finite.
template <class T>
float scale_of_row(const T* row, int64_t stride, int64_t size) {
  Vec largest{};
  IntVec other{};
  for (int64_t i = 0; i < size; i += kLanes) {
    const Vec a = abs(load_lanes(row + i * stride, stride, size - i));
    largest = max(largest, a);
    other |= ~(a < __builtin_inff());
  }
  if (any_lane(other)) return __builtin_nanf("");
  const float scale = maximum(largest) / kLargestCode;
  return scale > kSmallestScale ? scale : kSmallestScale;
}

// Returns the scale. codes = row / scale, rounded to nearest even; 0 in a row that is not finite. One division and one
// rounding for each element, so that every target has the same codes.
template <class T>
float quantize_row(const T* row, int64_t stride, int64_t size, Code* codes, int64_t code_stride) {
  const float scale = scale_of_row(row, stride, size);
  for (int64_t i = 0; i < size; i += kLanes) {
    const Vec a = scale == scale ? load_lanes(row + i * stride, stride, size - i) / broadcast(scale) : Vec{};
    if (code_stride == 1) {
      store_lanes(codes + i, size - i, a);
      continue;
    }
    Code lanes[kLanes];
    store(lanes, a);
    for (int64_t n = 0; n < kLanes && i + n < size; ++n) codes[(i + n) * code_stride] = lanes[n];
  }
  return scale;
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
