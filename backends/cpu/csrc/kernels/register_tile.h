// The loop that multiplies packed tiles in vector registers: kRows rows of A, kVectors vectors of B's columns.
#pragma once

#include "kernels/operands.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

// sums += A B over `count` groups, in their order: the same bits whatever the tile. right_at(k, n) gives the n-th
// vector of B's group k.
template <class Operand, int kRows, int kVectors, class RightAt>
[[gnu::always_inline]] inline void add_products(const Left<Operand>& left, int64_t count, const RightAt& right_at,
                                                Vec (&sums)[kRows][kVectors]) {
  for (int64_t k = 0; k < count; ++k) {
    typename Operand::Register b[kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) b[n] = right_at(k, n);
#pragma GCC unroll 12
    for (int m = 0; m < kRows; ++m) {
      const auto a = Operand::broadcast_group(left.data + m * left.row_stride + k * left.group_stride);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sums[m][n] = Operand::multiply_add(a, b[n], sums[m][n]);
    }
  }
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
