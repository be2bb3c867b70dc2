// Where the keys and values of a decode block lie, and how a vector of them becomes an operand.
#pragma once

#include "kernels/attention_mask.h"
#include "kernels/attention_pack.h"
#include "kernels/attention_softmax.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kDecodeBlock = 64;  // keys; their rows and the next block's are in flight: 64 KiB at head_dim 128
constexpr int kDecodeVectors = 4;     // of the output of each of
constexpr int kDecodeQueriesAtOnce = kLanes == 16 ? 5 : 2;  // queries in registers

// Whole operands of a row in memory; past `left` elements zeros.
template <class T, class Operand>
struct RowGroups {
  [[gnu::always_inline]] static Vec load_some(const T* row, int64_t left) {
    if (left >= kLanes) return load(row);
    return left > 0 ? load_partial(row, left) : Vec{};
  }
  template <int kVectors, bool kWhole>
  [[gnu::always_inline]] static void interleave(const T* const* rows, int64_t column, int64_t size, Vec* v) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n)
      v[n] = load_some(rows[0] + column + n * kLanes, kWhole ? kLanes : size - column - n * kLanes);
  }
};

#if defined(__AVX512BF16__)
[[gnu::always_inline]] inline __m512i load_pairs(const BFloat16* row, int64_t left) {
  if (left >= 32) return _mm512_loadu_si512(row);
  return left > 0 ? _mm512_maskz_loadu_epi16((__mmask32{1} << left) - 1, row) : _mm512_setzero_si512();
}

// bfloat16 holds every code.
[[gnu::always_inline]] inline __m512i load_pairs(const Code* row, int64_t left) {
  const __m256i codes = left >= 32 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row))
                        : left > 0 ? _mm256_maskz_loadu_epi8((__mmask32{1} << left) - 1, row)
                                   : _mm256_setzero_si256();
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(codes, 1)));
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

template <class T>
struct RowGroups<T, BFloat16Operand> {
  [[gnu::always_inline]] static __m512bh load_some(const T* row, int64_t left) {
    return (__m512bh)load_pairs(row, left);
  }
  // Pairs of two rows, column by column.
  template <int kVectors, bool kWhole>
  [[gnu::always_inline]] static void interleave(const T* const* rows, int64_t column, int64_t size, __m512bh* v) {
    const __m512i order = _mm512_cvtepu8_epi32(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m512i low = _mm512_or_si512(order, _mm512_slli_epi32(_mm512_add_epi32(order, _mm512_set1_epi32(32)), 16));
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; n += 2) {
      const int64_t left = kWhole ? 2 * kLanes : size - column - n * kLanes;
      const __m512i a = load_pairs(rows[0] + column + n * kLanes, left);
      const __m512i b = load_pairs(rows[1] + column + n * kLanes, left);
      v[n] = (__m512bh)_mm512_permutex2var_epi16(a, low, b);
      v[n + 1] = (__m512bh)_mm512_permutex2var_epi16(a, high, b);
    }
  }
};
#endif

// The scales of a block's keys and values; of floats there are none.
template <class T>
struct BlockScales {
  Unscaled of_keys() const { return {}; }
  Unscaled of_values() const { return {}; }
  template <class Rows>
  void locate(const Rows&, const Rows&, int64_t, int64_t) {}
};

template <>
struct BlockScales<Code> {
  float keys[kDecodeBlock], values[kDecodeBlock];  // 0 past the end
  Scaled of_keys() const { return {keys}; }
  Scaled of_values() const { return {values}; }
  void locate(const CodedRows& key_rows, const CodedRows& value_rows, int64_t first, int64_t count) {
    copy_scales(key_rows, first, first + count, keys);
    copy_scales(value_rows, first, first + count, values);
    for (int64_t i = count; i < kDecodeBlock; ++i) keys[i] = values[i] = 0;
  }
};

// A block of at most kDecodeBlock keys; past the end the last one again, whose probability is 0.
template <class T>
struct DecodeRows {
  const T *keys[kDecodeBlock], *values[kDecodeBlock];
  int64_t count;
  BlockScales<T> scales;

  template <class Rows>
  void locate(const Rows& key_rows, const Rows& value_rows, int64_t first, int64_t end) {
    count = clamp(end - first, 0, kDecodeBlock);
    scales.locate(key_rows, value_rows, first, count);
    for (int64_t i = 0; i < kDecodeBlock;) {
      const int64_t key = first + i < end ? first + i : end - 1;
      int64_t run = first + i < end ? key_rows.left_in_block(key) : kDecodeBlock;
      if (first + i < end && run > end - key) run = end - key;
      const int64_t step = first + i < end ? 1 : 0;
      const T *key_row = key_rows[key], *value_row = value_rows[key];
      for (int64_t n = 0; n < run && i < kDecodeBlock; ++n, ++i) {
        keys[i] = key_row + n * step * key_rows.row_stride;
        values[i] = value_row + n * step * value_rows.row_stride;
      }
    }
  }
};

// Into the first level: asked into the second, bfloat16 took twice as long (Zen 5). Always inline: GCC leaves out calls
// of a function that does nothing but ask.
template <class T>
[[gnu::always_inline]] inline void prefetch_values(const T* row, int64_t head_dim) {
  for (int64_t i = 0; i < head_dim; i += 64 / sizeof(T)) __builtin_prefetch(row + i, 0, 3);
}

// Whether a loop over a row asks for what is ahead at element i: once a line of codes, which takes several vectors.
template <class T>
bool asks_ahead(int64_t i) {
  return sizeof(T) > 1 || i % 64 == 0;
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
