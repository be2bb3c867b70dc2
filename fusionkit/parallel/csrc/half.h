// float16 and bfloat16 to float32 and back, rounding to nearest even. Plain bits, so that loops over them vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace fusionkit_parallel {

struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_float(Bfloat16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }

inline Bfloat16 to_bfloat16(float x) {
  const uint32_t bits = as_bits(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(x != x ? (bits >> 16) | 0x40 : rounded)};
}

// float32's exponent is biased by 112 more than float16's. No value on the way is subnormal in float32: threads that
// flush subnormals to zero compute the same.
inline float to_float(Float16 x) {
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, exponent = x.bits & 0x7c00u;
  const uint32_t normal = magnitude + (112u << 23);
  const uint32_t subnormal = as_bits(as_float(magnitude + (113u << 23)) - as_float(113u << 23));
  const uint32_t special = magnitude | 0x7f800000u;
  const uint32_t value = exponent == 0 ? subnormal : exponent == 0x7c00u ? special : normal;
  return as_float(value | (static_cast<uint32_t>(x.bits & 0x8000u) << 16));
}

inline Float16 to_float16(float x) {
  const uint32_t bits = as_bits(x), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  // The last bit of 0.5 is float16's smallest subnormal, so the sum rounds where float16 does.
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t overflow = as_bits(65520.0f), smallest_normal = 113u << 23;
  const uint32_t value = magnitude >= overflow ? special : magnitude < smallest_normal ? subnormal : normal;
  return {static_cast<uint16_t>(value | ((bits >> 16) & 0x8000u))};
}

}  // namespace fusionkit_parallel
