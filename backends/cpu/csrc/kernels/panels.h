// Panels: strips of an operand, rounded and laid out for a micro-kernel. A step is one k of float32, or the pair of k
// that a bfloat16 unit takes; a panel holds its columns side by side for each step, 32 bits an entry.
#pragma once

#include <cstring>

#include "kernels/lanes.h"
#include "kernels/operands.h"
#include "kernels/transpose.h"
#include "matrix.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

// 24 of 32 registers hold sums with AVX-512, 12 of 16 otherwise.
constexpr int kPanelRows = kLanes == 16 ? 12 : 6;
constexpr int kPanelCols = 2 * kLanes;
// That of oneDNN with AVX-512.
constexpr int kWidestPanel = kLanes == 16 ? 4 * kLanes : kPanelCols;

static inline bool in_pairs(DType compute) { return compute == DType::kBFloat16; }

static inline int64_t padded_depth(DType compute, int64_t depth) {
  return in_pairs(compute) ? (depth + 1) / 2 * 2 : depth;
}

// float32 entries of any storage, rounded on the way.
template <class T>
struct FloatEntries {
  using Element = T;
  static constexpr int kStep = 1;
  DType round_to;

  // One step of `cols` columns.
  UintVec across(const T* row, int64_t, int64_t cols) const {
    return (UintVec)round_vector(round_to, load_lanes(row, 1, cols));
  }
  // kLanes steps of one column.
  UintVec along(const T* column) const { return (UintVec)round_vector(round_to, load(column)); }
};

#ifdef __AVX512BF16__
// Pairs of bfloat16: k in the low half of each entry, k + 1 in the high half.
template <class T>
struct PairEntries {
  using Element = T;
  static constexpr int kStep = 2;
  DType round_to;  // bfloat16, or what a shorter storage has been rounded to already

  UintVec across(const T* row, int64_t row_stride, int64_t cols) const {
    return low(row, cols) | low(row + row_stride, cols) << 16;
  }
  // The pair of a k and nothing.
  UintVec low(const T* row, int64_t cols) const {
    return (UintVec)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(load_lanes(row, 1, cols)));
  }
  UintVec along(const T* column) const {
    return (UintVec)(__m512i)_mm512_cvtne2ps_pbh(load(column + kLanes), load(column));
  }
};

template <>
inline UintVec PairEntries<BFloat16>::low(const BFloat16* row, int64_t cols) const {
  return (UintVec)load_lanes(row, 1, cols) >> 16;
}
template <>
inline UintVec PairEntries<BFloat16>::across(const BFloat16* row, int64_t row_stride, int64_t cols) const {
  return low(row, cols) | (UintVec)load_lanes(row + row_stride, 1, cols);
}
template <>
inline UintVec PairEntries<BFloat16>::along(const BFloat16* column) const {
  return (UintVec)_mm512_loadu_si512(column);
}
#endif

// What entries of kStep k's multiply as.
template <int kStep>
struct OperandOfStep {
  using Type = FloatOperand;
};
#if defined(__AVX512BF16__)
template <>
struct OperandOfStep<2> {
  using Type = BFloat16Operand;
};
#endif

// Entries for storage T that multiply as `compute`: f(entries).
template <class F>
static inline void visit_entries(DType storage, DType round_to, DType compute, F f) {
  if (round_to == storage) round_to = DType::kFloat32;
  visit_floating(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
#ifdef __AVX512BF16__
    if (in_pairs(compute)) return f(PairEntries<T>{round_to});
#endif
    (void)compute;
    f(FloatEntries<T>{round_to});
  });
}

// kLanes steps of up to kLanes columns from (row, col) on. What lies outside m is zero.
template <class Entries>
static inline void load_tile(const Entries& entries, const Matrix& m, int64_t row, int64_t col, int64_t cols,
                             UintVec (&tile)[kLanes]) {
  using T = typename Entries::Element;
  constexpr int kRows = kLanes * Entries::kStep;
  constexpr int kAhead = 512 / static_cast<int>(sizeof(T));
  const T* from = static_cast<const T*>(m.data) + row * m.row_stride + col * m.col_stride;
  if (m.rows - row >= kRows && m.col_stride == 1) {
    for (int i = 0; i < kRows; ++i) __builtin_prefetch(from + (kRows + i) * m.row_stride);
    for (int i = 0; i < kLanes; ++i)
      tile[i] = entries.across(from + i * Entries::kStep * m.row_stride, m.row_stride, cols);
    return;
  }
  if (m.rows - row >= kRows && m.row_stride == 1) {
    for (int j = 0; j < kLanes; ++j) {
      if (j < cols) __builtin_prefetch(from + j * m.col_stride + kAhead);
      tile[j] = j < cols ? entries.along(from + j * m.col_stride) : UintVec{};
    }
    return transpose(tile);
  }
  T staged[kRows * kLanes] = {};
  const int64_t rows = m.rows - row < kRows ? m.rows - row : kRows;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) staged[i * kLanes + j] = from[i * m.row_stride + j * m.col_stride];
  for (int i = 0; i < kLanes; ++i) tile[i] = entries.across(staged + i * Entries::kStep * kLanes, kLanes, kLanes);
}

template <int Width, int Cols, class Entries>
static inline void pack_tile(const Entries& entries, const Matrix& m, int64_t row, int64_t col, int64_t steps,
                             uint32_t* panel) {
  const int64_t left = m.cols - col;
  UintVec tile[kLanes];
  load_tile(entries, m, row, col, left < Cols ? (left < 0 ? 0 : left) : Cols, tile);
  for (int64_t i = 0; i < kLanes && i < steps; ++i) std::memcpy(panel + i * Width, &tile[i], sizeof(uint32_t) * Cols);
}

// Columns [col, col + Width) of m from `row` on: at most kLanes steps, to their place in a panel.
template <int Width, class Entries>
static inline void pack_strip(const Entries& entries, const Matrix& m, int64_t row, int64_t col, int64_t steps,
                              uint32_t* panel) {
  constexpr int kWhole = Width / kLanes * kLanes;
  for (int j = 0; j < kWhole; j += kLanes) pack_tile<Width, kLanes>(entries, m, row, col + j, steps, panel + j);
  if constexpr (kWhole < Width) pack_tile<Width, Width - kWhole>(entries, m, row, col + kWhole, steps, panel + kWhole);
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
