// Vectors of bytes, four a lane, and the instruction that multiplies them by codes of 4 bits without a sign.
// Included by kernels/*.cc only; see vec.h.
//
// A lane has two sums of 16 bits. They hold 8 quads: a sum is of 16 products, and a product is at most 15 * 127 in
// size. Products of codes of 8 bits do not even hold in pairs.
#pragma once

#include "kernels/pairs.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

#if defined(__AVX2__)

// Without a sign: on the way a sum may wrap around, at the end it fits.
inline IntVec add_quad_products(IntVec sums, UintVec codes, UintVec x) {
#if defined(__AVX512BW__)
  const auto products = (UnsignedPairVec)_mm512_maddubs_epi16((__m512i)codes, (__m512i)x);
#else
  const auto products = (UnsignedPairVec)_mm256_maddubs_epi16((__m256i)codes, (__m256i)x);
#endif
  return (IntVec)((UnsignedPairVec)sums + products);
}
inline IntVec in_32_bits(IntVec sums) { return add_pair_products(IntVec{}, (PairVec)sums, PairVec{} + 1); }
// -excess * x for the sums of x at the first two and the last two bytes of all quads.
inline int32_t excess_taken_back(int excess, int32_t first, int32_t last) {
  const auto low = static_cast<uint32_t>(-excess * first), high = static_cast<uint32_t>(-excess * last);
  return static_cast<int32_t>(high << 16 | (low & 0xffff));
}

#endif

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
