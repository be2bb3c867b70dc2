// The values of a panel, transposed in registers, square by square.
#include "kernels/quantized_gradient.h"

#include <cstring>

#include "kernels/panels.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

// `left` rows of a square, zeros below them.
void transpose_last_square(const float* from, int64_t left, float* to) {
  float square[kLanes * kLanes] = {};
  for (int64_t i = 0; i < left; ++i) std::memcpy(square + i * kLanes, from + i * kPanelCols, sizeof(Vec));
  transpose_square(square, kLanes, to, kPanelCols, kLanes);
}

}  // namespace

void transpose_values(const float* values, int64_t depth, const PanelFormat& to, int64_t step, float* panels) {
  for (int64_t k = 0; k < to.count(depth) * kPanelCols; k += kLanes)
    for (int64_t col = 0; col < kQuantizedCols; col += kLanes) {
      const float* from = values + (col / kPanelCols * depth + k) * kPanelCols + col % kPanelCols;
      float* at = panels + (k / kPanelCols * to.depth + step + col) * kPanelCols + k % kPanelCols;
      if (k + kLanes <= depth)
        transpose_square(from, kPanelCols, at, kPanelCols, kLanes);
      else
        transpose_last_square(from, depth - k, at);
    }
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
