// C[M, N] (+)= A[M, K] B[K, N] on packed operands that stay in cache. An operand holds consecutive k's in groups: one
// float, or two bfloat16 for the instruction that multiplies pairs and accumulates in float32.
#pragma once

#include "kernels/simd.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

// A tile of C is kTileRows x kTileVectors registers: 24 of 32 with AVX-512, 12 of 16 otherwise.
constexpr int kTileRows = 6;
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;
constexpr int kPanel = kTileVectors * kLanes;

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

struct FloatOperand {
  using Element = float;
  using Group = float;
  using Register = Vec;
  static constexpr int kGroup = 1;
  static constexpr int64_t kLongestChain = 64;  // groups added one after another; longer sums add such chains
  static Register broadcast_group(const Group* p) { return broadcast(*p); }
  static Register load_groups(const Group* p) { return load(p); }
  static Vec multiply_add(Register a, Register b, Vec c) { return fma(a, b, c); }
  static constexpr float kUnit = 1;  // power(x) = exp(x / kUnit)
  static Vec power(Vec x) { return exp(x); }
  // kLanes groups whose members are the lanes of rows[0 .. kGroup).
  static void store_groups(Group* p, const Vec* rows) { store(p, rows[0]); }
  static void interleave(Group* p, const Element* const* rows, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = rows[0][i];
  }
};

#if defined(__AVX512BF16__)
struct BFloat16Operand {
  using Element = BFloat16;
  using Group = uint32_t;
  using Register = __m512bh;
  static constexpr int kGroup = 2;
  static constexpr int64_t kLongestChain = INT64_MAX;  // the operands' own rounding is 2^-9
  static Register broadcast_group(const Group* p) {
    int pair;
    __builtin_memcpy(&pair, p, sizeof pair);  // written as two elements
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static Register load_groups(const Group* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Vec multiply_add(Register a, Register b, Vec c) { return _mm512_dpbf16_ps(c, a, b); }
  static constexpr float kUnit = 1.44269504f;  // 1 / ln 2
  // 2^x within 3 ULP, in 7 instructions where exp takes 18: what is left after the floor, 0 for -inf, the minimax
  // polynomial of degree 5, wrong by 1.4 * 2^-24 (1 for 0), and scalef, which takes the floor itself.
  static Vec power(Vec x) {
    const Vec r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vec p = fma(r, broadcast(0.00186713021f), broadcast(0.00901702996f));
    p = fma(p, r, broadcast(0.0557999134f));
    p = fma(p, r, broadcast(0.2401644500f));
    p = fma(p, r, broadcast(0.6931513118f));
    return _mm512_scalef_ps(fma(p, r, broadcast(1)), x);
  }
  static void store_groups(Group* p, const Vec* rows) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(rows[0]));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(rows[1]));
    _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  static void interleave(Group* p, const Element* const* rows, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = rows[0][i].bits | static_cast<uint32_t>(rows[1][i].bits) << 16;
  }
};
#endif

// What storage T is multiplied as.
template <class T>
struct OperandOf {
  using Type = FloatOperand;
};
#if defined(__AVX512BF16__)
template <>
struct OperandOf<BFloat16> {
  using Type = BFloat16Operand;
};
#endif

// Group (m, k) is at data[m * row_stride + k * group_stride].
template <class Operand>
struct Left {
  const typename Operand::Group* data;
  int64_t row_stride, group_stride;
};

// Columns in panels of kPanel; within a panel, group k of column n is at [k * kPanel + n].
template <class Operand>
struct Right {
  const typename Operand::Group* data;
  int64_t panel_stride;
};

struct GroupRange {
  int64_t begin, end;
};

// What a row of tiles of C needs: its k's, and its columns from a multiple of kLanes on; whole vectors are computed.
struct TileWork {
  GroupRange groups;
  int64_t first_column, end_column;
};

template <class Operand, int kRows, int kVectors>
void multiply_tile(const Left<Operand>& left, const typename Operand::Group* right, GroupRange groups, float* c,
                   int64_t c_stride, bool accumulate) {
  Vec sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) sums[m][n] = Vec{};
  for (int64_t k = groups.begin; k < groups.end; ++k) {
    typename Operand::Register b[kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) b[n] = Operand::load_groups(right + k * kPanel + n * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const auto a = Operand::broadcast_group(left.data + m * left.row_stride + k * left.group_stride);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sums[m][n] = Operand::multiply_add(a, b[n], sums[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) {
      float* to = c + m * c_stride + n * kLanes;
      store(to, accumulate ? load(to) + sums[m][n] : sums[m][n]);
    }
}

template <class Operand, int kVectors>
void multiply_rows(int rows, const Left<Operand>& left, const typename Operand::Group* right, GroupRange groups,
                   float* c, int64_t c_stride, bool accumulate) {
  switch (rows) {
    case 1:
      return multiply_tile<Operand, 1, kVectors>(left, right, groups, c, c_stride, accumulate);
    case 2:
      return multiply_tile<Operand, 2, kVectors>(left, right, groups, c, c_stride, accumulate);
    case 3:
      return multiply_tile<Operand, 3, kVectors>(left, right, groups, c, c_stride, accumulate);
    case 4:
      return multiply_tile<Operand, 4, kVectors>(left, right, groups, c, c_stride, accumulate);
    case 5:
      return multiply_tile<Operand, 5, kVectors>(left, right, groups, c, c_stride, accumulate);
    default:
      return multiply_tile<Operand, 6, kVectors>(left, right, groups, c, c_stride, accumulate);
  }
}

template <class Operand>
void multiply_columns(int64_t columns, int rows, const Left<Operand>& left, const typename Operand::Group* right,
                      GroupRange groups, float* c, int64_t c_stride, bool accumulate) {
  if (columns <= kLanes) {
    multiply_rows<Operand, 1>(rows, left, right, groups, c, c_stride, accumulate);
  } else if (columns <= 2 * kLanes || kTileVectors == 2) {
    multiply_rows<Operand, 2>(rows, left, right, groups, c, c_stride, accumulate);
  } else if (columns <= 3 * kLanes) {
    multiply_rows<Operand, kTileVectors - 1>(rows, left, right, groups, c, c_stride, accumulate);
  } else {
    multiply_rows<Operand, kTileVectors>(rows, left, right, groups, c, c_stride, accumulate);
  }
}

// C has `rows` rows and `columns` columns rounded up to whole vectors. work_of(row) tells what the row of tiles there
// needs; what it does not need is left as it is.
template <class Operand, class WorkOf>
void multiply(const Left<Operand>& left, int64_t rows, const Right<Operand>& right, int64_t columns, float* c,
              int64_t c_stride, bool accumulate, const WorkOf& work_of) {
  for (int64_t column = 0; column < columns; column += kPanel) {
    const int64_t panel_end = column + kPanel < columns ? column + kPanel : columns;
    const auto* panel = right.data + column / kPanel * right.panel_stride;
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const int tile_rows = static_cast<int>(rows - row < kTileRows ? rows - row : kTileRows);
      const Left<Operand> tile_left = {left.data + row * left.row_stride, left.row_stride, left.group_stride};
      const TileWork work = work_of(row);
      const int64_t first = work.first_column > column ? work.first_column : column;
      const int64_t width = (work.end_column < panel_end ? work.end_column : panel_end) - first;
      if (width <= 0) continue;
      bool add = accumulate;
      for (int64_t begin = work.groups.begin; begin < work.groups.end; add = true) {
        // Chains begin at multiples of their length, wherever the work begins.
        const int64_t chain_end = begin - begin % Operand::kLongestChain + Operand::kLongestChain;
        const int64_t end = work.groups.end < chain_end ? work.groups.end : chain_end;
        multiply_columns<Operand>(width, tile_rows, tile_left, panel + (first - column), {begin, end},
                                  c + row * c_stride + first, c_stride, add);
        begin = end;
      }
    }
  }
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
