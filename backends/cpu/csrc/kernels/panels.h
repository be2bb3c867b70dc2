// Panels: strips of an operand, rounded and laid out for the micro-kernel. Elements pass through a small block of
// float32, so that any storage and strides meet any layout.
#pragma once

#include <cstring>

#include "kernels/simd.h"
#include "matrix.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

// 24 of 32 registers hold sums with AVX-512, 12 of 16 otherwise.
constexpr int kPanelRows = kLanes == 16 ? 12 : 6;
constexpr int kPanelCols = 2 * kLanes;
constexpr int kStageRows = 16;

inline bool in_pairs(DType compute) { return compute == DType::kBFloat16; }

inline int64_t padded_depth(DType compute, int64_t depth) { return in_pairs(compute) ? (depth + 1) / 2 * 2 : depth; }

template <class T>
inline void stage(const Matrix& m, int64_t row, int64_t col, int rows, int cols, int width, float* out) {
  const T* from = static_cast<const T*>(m.data) + row * m.row_stride + col * m.col_stride;
  if (rows < kStageRows || cols < width) std::memset(out, 0, sizeof(float) * kStageRows * width);
  if (m.row_stride == 1) {
    for (int j = 0; j < cols; ++j)
      for (int i = 0; i < rows; ++i) out[i * width + j] = to_float(from[j * m.col_stride + i]);
    return;
  }
  for (int i = 0; i < rows; ++i) {
    const T* row_i = from + i * m.row_stride;
    if (m.col_stride == 1 && cols == kPanelCols) {
      for (int j = 0; j < kPanelCols; j += kLanes) store(out + i * width + j, load(row_i + j));
    } else {
      for (int j = 0; j < cols; ++j) out[i * width + j] = to_float(row_i[j * m.col_stride]);
    }
  }
}

inline void stage_any(const Matrix& m, int64_t row, int64_t col, int rows, int cols, int width, float* out) {
  switch (m.dtype) {
    case DType::kBFloat16:
      return stage<BFloat16>(m, row, col, rows, cols, width, out);
    case DType::kFloat16:
      return stage<Float16>(m, row, col, rows, cols, width, out);
    default:
      return stage<float>(m, row, col, rows, cols, width, out);
  }
}

template <class T>
inline void round_stage(float* values, int n) {
  for (int i = 0; i < n; ++i) values[i] = to_float(from_float<T>(values[i]));
}

inline void round_stage_to(DType round_to, float* values, int n) {
  if (round_to == DType::kBFloat16) round_stage<BFloat16>(values, n);
  if (round_to == DType::kFloat16) round_stage<Float16>(values, n);
}

#ifdef __AVX512BF16__
// Two rows interleaved: k in the low half of each pair, k + 1 in the high half.
inline UintVec pair(const float* low, const float* high) {
  const auto widen = [](const float* p) {
    return (UintVec)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(load(p)));
  };
  return widen(low) | widen(high) << 16;
}

inline void emit_pairs(const float* staged, int rows, int width, BFloat16* panel) {
  for (int i = 0; i < rows; i += 2) {
    const float* low = staged + i * width;
    int j = 0;
    for (; j + kLanes <= width; j += kLanes) {
      const UintVec pairs = pair(low + j, low + width + j);
      std::memcpy(panel + i * width + 2 * j, &pairs, sizeof pairs);
    }
    for (; j < width; ++j) {
      panel[i * width + 2 * j] = from_float<BFloat16>(low[j]);
      panel[i * width + 2 * j + 1] = from_float<BFloat16>(low[width + j]);
    }
  }
}
#endif

inline void emit(const float* staged, int rows, int width, DType compute, void* panel) {
#ifdef __AVX512BF16__
  if (in_pairs(compute)) return emit_pairs(staged, rows, width, static_cast<BFloat16*>(panel));
#endif
  (void)compute;
  std::memcpy(panel, staged, sizeof(float) * rows * width);
}

// Columns [col, col + width) of m as one panel.
inline void pack_panel(const Matrix& m, int64_t col, int width, DType round_to, DType compute, void* panel) {
  const int cols = static_cast<int>(m.cols - col < width ? m.cols - col : width);
  const bool round = round_to != m.dtype && round_to != compute;
  alignas(64) float staged[kStageRows * kPanelCols];
  for (int64_t row = 0; row < m.rows; row += kStageRows) {
    const int rows = static_cast<int>(m.rows - row < kStageRows ? m.rows - row : kStageRows);
    stage_any(m, row, col, rows, cols, width, staged);
    if (round) round_stage_to(round_to, staged, rows * width);
    emit(staged, rows, width, compute, static_cast<char*>(panel) + row * width * element_size(compute));
  }
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
