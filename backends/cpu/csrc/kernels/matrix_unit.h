// The matrix unit: C[M, N] (+)= A[M, K] B[K, N] on packed operands that stay in cache, with float32 sums. A target has
// one, and what its unit asks of the layout stands in these constants; masks, schedules and packing know of no tiles.
//
//   Region         what a thread has to hold while it multiplies
//   kMultiplies    whether the unit takes an operand; another one is left to the target that this one is like
//   kRows          rows of C in a row of tiles: what these need is told for all of them at once
//   kRowsTogether  A and C have memory for a whole number of these rows; what the rest of A holds is not used
//   kPanel         columns of B that lie side by side; whole vectors of columns are computed
//   kDepth         groups of K multiplied together: operands are zero up to a whole number, and work begins at one
//   kKeysTogether  the same for K that runs over keys, in elements, and a whole number of vectors
//   kQueryBlock    queries of a block of attention: a whole number of kRows and kKeysTogether
//   multiply(left, rows, right, columns, c, c_stride, accumulate, work_of)
//                  C has `rows` rows and `columns` columns. work_of(row) tells what the row of tiles there needs; what
//                  it does not need is left as it is.
//   transposed_left(groups, stride, rows, count, memory)
//                  the left operand whose group (m, k) is at groups[k * stride + m], m < rows, k < count, perhaps made
//                  in `memory`, which has transposed_size(rows, count) groups
#pragma once

#include <type_traits>

#if defined(__AMX_BF16__)
#include "kernels/tile_unit.h"
#else
#include "kernels/vector_unit.h"
#endif

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

#if defined(__AMX_BF16__)
using MatrixUnit = TileUnit;
#else
using MatrixUnit = VectorUnit;
#endif

constexpr int kPanel = MatrixUnit::kPanel;

// f(null pointer of the storage type) if the unit multiplies it; false otherwise.
template <class F>
inline bool visit_multiplied(DType dtype, F f) {
  bool multiplied = false;
  visit_floating(dtype, [&](auto* type) {
    using Operand = typename OperandOf<std::remove_pointer_t<decltype(type)>>::Type;
    if constexpr (MatrixUnit::kMultiplies<Operand>) {
      multiplied = true;
      f(type);
    }
  });
  return multiplied;
}

static_assert(kPanel % kLanes == 0 && MatrixUnit::kKeysTogether % kLanes == 0 &&
              kPanel % MatrixUnit::kKeysTogether == 0 && MatrixUnit::kQueryBlock % MatrixUnit::kRows == 0);

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
