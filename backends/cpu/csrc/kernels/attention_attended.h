// Products that leave dropped pairs out. The register tiles multiply every pair of a span, a dropped one by 0, and 0
// times what is not finite is NaN: sums that are not finite are taken again here, one attended pair after the other.
#pragma once

#include "kernels/attention_span.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

// count is a multiple of kLanes.
inline bool all_finite(const float* values, int64_t count) {
  IntVec other{};
  for (int64_t i = 0; i < count; i += kLanes) other |= ~(abs(load(values + i)) < __builtin_inff());
  return !any_lane(other);
}

// A masked score tells; one that is -inf by itself weighs nothing either.
inline bool is_dropped(float score) { return score == -__builtin_inff(); }

template <class T>
void add_row(float weight, const T* row, int64_t stride, int64_t size, float* sums) {
  for (int64_t i = 0; i < size; ++i) sums[i] += weight * to_float(row[i * stride]);
}

// sums += the rows of the keys [0, count) that are attended; rows(key) is where one lies.
template <class Element, class RowOf>
void add_attended(const float* scores, const Element* weights, int64_t count, const RowOf& row_of, int64_t stride,
                  int64_t size, float* sums) {
  for (int64_t key = 0; key < count; ++key) {
    if (!is_dropped(scores[key])) add_row(to_float(weights[key]), row_of(key), stride, size, sums);
  }
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
