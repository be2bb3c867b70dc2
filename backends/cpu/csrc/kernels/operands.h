// What products multiply: groups of consecutive k's, one float, or two bfloat16 for the instruction that multiplies
// pairs and accumulates in float32; and the operands that hold them. Every product in vector registers adds the groups
// of a sum in the order of k, in chains that begin at multiples of kLongestChain: the groups of a chain one after
// another, from zero on, and then the chains. So the bits are the same whatever the kernel.
#pragma once

#include "kernels/simd.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

struct FloatOperand {
  using Element = float;
  using Group = float;
  using Register = Vec;
  static constexpr int kGroup = 1;
  // The rounding of a chain grows with the root of its length: 1536 groups in one have four times the error of these.
  static constexpr int64_t kLongestChain = 64;
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

// Columns in panels of the unit's width; within a panel, group k of column n is at [k * width + n].
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

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
