// Scales in two levels: scale * factor is each value of a block, and the product rounds nothing.
//
// A value is m 2^e with an odd m. The largest scale that makes all factors integers has the greatest common divisor of
// the m's and the least e. Of GGUF's blocks of 256 a scale is a float16 times an integer of 8 bits, so the factors
// found are no larger than those of the file.
#pragma once

#include "kernels/simd.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

constexpr int kMostFactors = 16;  // of a block

struct ScaleLevels {
  float scale = 0;
  int8_t factors[kMostFactors] = {};
  bool are_exact = false;  // otherwise no factors of 8 bits do
};

// value = m 2^(exponent - 150), m odd; 0 of 0.
struct OddPart {
  uint32_t m;
  int exponent;
  bool is_negative;
};

OddPart odd_part(float value) {
  const uint32_t bits = float_to_bits(value), field = bits >> 23 & 0xff;
  const uint32_t m = (bits & 0x7fffff) | (field > 0 ? 0x800000u : 0u);
  if (m == 0) return {0, 0, false};
  const int zeros = __builtin_ctz(m);
  return {m >> zeros, static_cast<int>(field > 0 ? field : 1) + zeros, bits >> 31 != 0};
}

uint32_t greatest_common_divisor(uint32_t a, uint32_t b) {
  while (b != 0) {
    const uint32_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// m 2^(exponent - 150), or 0 where that is no normal number.
float from_odd_part(uint32_t m, int exponent) {
  const uint32_t bits = float_to_bits(static_cast<float>(m));
  const int field = static_cast<int>(bits >> 23) + exponent - 150;
  return field < 1 ? 0 : bits_to_float((bits & 0x7fffff) | static_cast<uint32_t>(field) << 23);
}

// What divides all of them: the greatest m and the least exponent; m is 0 if all are 0.
OddPart common_part(const OddPart* parts, int64_t count) {
  OddPart common{};
  for (int64_t i = 0; i < count; ++i) {
    if (parts[i].m == 0) continue;
    const bool is_first = common.m == 0;
    common.exponent = is_first || parts[i].exponent < common.exponent ? parts[i].exponent : common.exponent;
    common.m = greatest_common_divisor(parts[i].m, common.m);
  }
  return common;
}

// |part| / common, or 129 of more.
int quotient(const OddPart& part, const OddPart& common) {
  const uint32_t m = part.m / common.m;
  const int shift = m == 0 ? 0 : part.exponent - common.exponent;
  return m > 128 || shift > 7 || m << shift > 128 ? 129 : static_cast<int>(m << shift);
}

// Of `count` values, `stride` apart. 128 is no int8, and -128 is one: the scale takes the sign that helps. llama.cpp
// gives -128 to the largest scale of each block of Q6_K.
ScaleLevels find_levels(const float* values, int64_t stride, int64_t count) {
  ScaleLevels levels;
  OddPart parts[kMostFactors];
  for (int64_t i = 0; i < count; ++i) parts[i] = odd_part(values[i * stride]);
  const OddPart common = common_part(parts, count);
  levels.scale = common.m == 0 ? 0 : from_odd_part(common.m, common.exponent);
  levels.are_exact = common.m == 0 || levels.scale != 0;
  if (levels.scale == 0) return levels;
  bool flips = false;
  for (int64_t i = 0; i < count; ++i) flips |= quotient(parts[i], common) == 128 && !parts[i].is_negative;
  for (int64_t i = 0; i < count; ++i) {
    const int size = quotient(parts[i], common), factor = parts[i].is_negative != flips ? -size : size;
    levels.factors[i] = static_cast<int8_t>(factor);
    levels.are_exact &= levels.factors[i] == factor;
  }
  levels.scale = flips ? -levels.scale : levels.scale;
  return levels;
}

}  // namespace
}  // namespace fusionkit_cpu::FUSIONKIT_ISA
