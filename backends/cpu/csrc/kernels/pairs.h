// Vectors of integers of 16 bits, two a lane, and the instruction that adds their products in 32 bits.
// Included by kernels/*.cc only; see vec.h.
#pragma once

#include "kernels/vec.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

typedef int16_t PairVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t UnsignedPairVec __attribute__((vector_size(4 * kLanes)));

// To nearest even. What int32 does not hold, and NaN, gives any value.
#if defined(__AVX512F__)
inline IntVec round_to_int(Vec a) { return (IntVec)_mm512_cvtps_epi32(a); }
#elif defined(__AVX2__)
inline IntVec round_to_int(Vec a) { return (IntVec)_mm256_cvtps_epi32(a); }
#elif defined(__SSE2__)
inline IntVec round_to_int(Vec a) { return (IntVec)_mm_cvtps_epi32(a); }
#else
inline IntVec round_to_int(Vec a) {
  IntVec rounded{};
  for (int i = 0; i < kLanes; ++i)
    rounded[i] = a[i] > -2147483648.0f && a[i] < 2147483648.0f ? static_cast<int32_t>(__builtin_rintf(a[i])) : 0;
  return rounded;
}
#endif

// sums + a0 b0 + a1 b1 for the two integers of each lane.
#if defined(__AVX512BW__)
inline IntVec add_pair_products(IntVec sums, PairVec a, PairVec b) {
  return sums + (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#elif defined(__AVX2__)
inline IntVec add_pair_products(IntVec sums, PairVec a, PairVec b) {
  return sums + (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#elif defined(__SSE2__)
inline IntVec add_pair_products(IntVec sums, PairVec a, PairVec b) {
  return sums + (IntVec)_mm_madd_epi16((__m128i)a, (__m128i)b);
}
#else
inline IntVec add_pair_products(IntVec sums, PairVec a, PairVec b) {
  const IntVec first = ((IntVec)((UintVec)a << 16) >> 16) * ((IntVec)((UintVec)b << 16) >> 16);
  return sums + first + ((IntVec)a >> 16) * ((IntVec)b >> 16);  // first: of the lane's low half
}
#endif

// A sum that is made here: GCC 12 would make all products of a loop's body first, and keep them in memory.
inline IntVec in_order(IntVec sum) {
#if defined(__AVX512F__)
  asm("" : "+v"(sum));
#elif defined(__SSE2__)
  asm("" : "+x"(sum));
#elif defined(__aarch64__)
  asm("" : "+w"(sum));
#endif
  return sum;
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
