// What TDPBF16PS computes, without the instruction: bit by bit the same, denormals, infinities and NaN included
// (Intel's manual, volume 2, TDPBF16PS). A tile of C is 16 x 16 float32. For each pair of bfloat16, even and odd
// members have sums of their own, added at the end; every input and result that is denormal counts as 0.
#pragma once

#include "kernels/operands.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

inline __m512 without_denormals(__m512 a) {
  const __m512i bits = (__m512i)a;
  const __mmask16 tiny = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  return (__m512)_mm512_mask_and_epi32(bits, tiny, bits, _mm512_set1_epi32(INT32_MIN));
}

// The even or odd members of 16 pairs.
inline __m512 member(__m512i pairs, bool odd) {
  const __m512i bits = odd ? _mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000)) : _mm512_slli_epi32(pairs, 16);
  return without_denormals((__m512)bits);
}

struct ModelTiles {
  // c += A B for one tile of each: 16 rows of 16 pairs, `stride` groups apart.
  static void multiply_tile(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c,
                            int64_t c_stride) {
    for (int m = 0; m < 16; ++m) {
      __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      for (int k = 0; k < 16; ++k) {
        const __m512i a_pairs = _mm512_set1_epi32(static_cast<int>(a[m * a_stride + k]));
        const __m512i b_pairs = _mm512_loadu_si512(b + k * b_stride);
        for (int odd = 0; odd < 2; ++odd) {
          sums[odd] = without_denormals(_mm512_fmadd_ps(member(a_pairs, odd), member(b_pairs, odd), sums[odd]));
        }
      }
      const __m512 added = without_denormals(_mm512_add_ps(sums[0], sums[1]));
      const __m512 before = without_denormals(_mm512_loadu_ps(c + m * c_stride));
      _mm512_storeu_ps(c + m * c_stride, without_denormals(_mm512_add_ps(before, added)));
    }
  }

  // kRows x kColumns tiles of C over `steps` tiles of A and B.
  template <int kRows, int kColumns>
  static void multiply(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, int64_t steps,
                       float* c, int64_t c_stride, bool accumulate) {
    for (int m = 0; m < kRows * 16 && !accumulate; ++m) {
      for (int n = 0; n < kColumns * 16; ++n) c[m * c_stride + n] = 0;
    }
    for (int m = 0; m < kRows; ++m) {
      for (int n = 0; n < kColumns; ++n) {
        for (int64_t k = 0; k < steps; ++k) {
          multiply_tile(a + m * 16 * a_stride + k * 16, a_stride, b + k * 16 * b_stride + n * 16, b_stride,
                        c + m * 16 * c_stride + n * 16, c_stride);
        }
      }
    }
  }
};

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
