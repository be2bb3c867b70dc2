// Integers of 8 bits that stand for floats, once these are multiplied by a scale.
#pragma once

#include "kernels/simd.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

struct Code {
  int8_t value;
};

typedef int8_t ByteVec __attribute__((vector_size(kLanes)));

static inline float to_float(Code code) { return code.value; }

// kLanes codes from any address, as floats.
static inline Vec load(const Code* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif defined(__SSE2__)
  int bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  const __m128i once = _mm_cvtsi32_si128(bytes), twice = _mm_unpacklo_epi8(once, once);
  return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(twice, twice), 24));
#else
  ByteVec bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, Vec);
#endif
}

// Rounded to nearest even. No lane is beyond 127.
static inline void store(Code* p, Vec a) {
  const IntVec rounded = (IntVec)(a + kRoundsToInteger) - (IntVec)broadcast(kRoundsToInteger);
  const ByteVec bytes = __builtin_convertvector(rounded, ByteVec);
  __builtin_memcpy(p, &bytes, sizeof bytes);
}

// simd.h has those of the other targets.
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
static inline Vec load_partial(const Code* p, int64_t n) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p)));
}
static inline void store_partial(Code* p, Vec a, int64_t n) {
  Code lanes[kLanes];
  store(lanes, a);
  _mm_mask_storeu_epi8(p, first_lanes(n), _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes)));
}
#endif

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
