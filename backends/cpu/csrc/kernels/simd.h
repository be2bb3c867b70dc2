// Vectors from and to storage: float32, bfloat16 and float16, rounded once, to nearest even, on store.
// Included by kernels/*.cc only; see vec.h.
#pragma once

#include <cstdint>

#include "fusionkit_cpu.h"
#include "kernels/vec.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }

// Rebiasing by multiplication makes subnormals right; 0x47800000 is 65536, the first value past float16's range.
inline float to_float(Float16 x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  const float scaled = bits_to_float(magnitude) * bits_to_float(0x77800000);  // 2^112
  const uint32_t bits = float_to_bits(scaled);
  const uint32_t special = bits >= 0x47800000 ? 0x7f800000 : 0;
  return bits_to_float(bits | special | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}

template <class T>
T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

// Round to nearest even; NaN stays NaN, made quiet.
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = float_to_bits(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
inline Float16 from_float<Float16>(float x) {
  const uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and more round to inf
  if (magnitude < 0x38800000) {  // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the end
    const uint32_t shifted = float_to_bits(bits_to_float(magnitude) + 0.5f);
    return {static_cast<uint16_t>(sign | (shifted - 0x3f000000))};
  }
  return {static_cast<uint16_t>(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13))};
}

// kLanes elements from or to any address.

static inline Vec load(const float* p) {
  Vec a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}

static inline void store(float* p, Vec a) { __builtin_memcpy(p, &a, sizeof a); }

// The float's high half is its bfloat16. NaN becomes all ones: no blend, and no shift, to save instructions.
inline UintVec round_high_half(Vec a) {
  const UintVec bits = (UintVec)a, odd = (UintVec)((bits & 0x10000) == 0x10000);  // -1 where the last bit kept is set
  return (bits + 0x7fff - odd) | (UintVec)(a != a);
}

#if defined(__AVX512F__)

static inline Vec load(const BFloat16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline Vec load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// The instruction alone would give zero for subnormals, which the other instruction sets keep.
inline __m256i to_bfloat16(Vec a) {
  constexpr int kSubnormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(a, kSubnormal) != 0, 0))
    return _mm512_cvtepi32_epi16((__m512i)(round_high_half(a) >> 16));
  return (__m256i)_mm512_cvtneps_pbh(a);
}
static inline void store(BFloat16* p, Vec a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(a)); }
static inline void store(Float16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

// Past the caches, at a multiple of the vector's size; see vec.h.
inline void store_non_temporal(BFloat16* p, Vec a) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(a));
}
inline void store_non_temporal(Float16* p, Vec a) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

#else

#if defined(__AVX2__)

// The loading unit copies to both halves; one shuffle then widens and shifts, where shuffles are what runs out.
static inline Vec load(const BFloat16* p) {
  const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i places = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                          -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(twice, places));
}
static inline Vec load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m128i to_bfloat16(Vec a) {
  const __m256i rounded = (__m256i)round_high_half(a);
  const __m256i places = _mm256_setr_epi8(2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                          -1, -1, -1, -1, -1, -1, -1, -1, 2, 3, 6, 7, 10, 11, 14, 15);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_shuffle_epi8(rounded, places), 0x0c));
}
inline __m128i to_float16(Vec a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
static inline void store(BFloat16* p, Vec a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bfloat16(a)); }
static inline void store(Float16* p, Vec a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_float16(a)); }
inline void store_non_temporal(BFloat16* p, Vec a) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_bfloat16(a)); }
inline void store_non_temporal(Float16* p, Vec a) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_float16(a)); }

#else

typedef uint16_t ShortVec __attribute__((vector_size(2 * kLanes)));

inline UintVec load_bits(const void* p) {
  ShortVec bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return __builtin_convertvector(bits, UintVec);
}
inline void store_bits(void* p, UintVec wide) {
#if defined(__SSE2__)
  // Narrowing saturates signed values: those of 16 bits pass.
  _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packs_epi32((__m128i)((IntVec)(wide << 16) >> 16), __m128i{}));
#else
  const ShortVec bits = __builtin_convertvector(wide, ShortVec);
  __builtin_memcpy(p, &bits, sizeof bits);
#endif
}

// The scalar conversions above, in vectors.
static inline Vec load(const BFloat16* p) { return (Vec)(load_bits(p) << 16); }
static inline Vec load(const Float16* p) {
  const UintVec x = load_bits(p);
  const Vec scaled = (Vec)((x & 0x7fff) << 13) * bits_to_float(0x77800000);
  const UintVec special = (UintVec)((IntVec)scaled >= 0x47800000) & 0x7f800000;
  return (Vec)((UintVec)scaled | special | (x & 0x8000) << 16);
}
static inline void store(BFloat16* p, Vec a) { store_bits(p, round_high_half(a) >> 16); }
static inline void store(Float16* p, Vec a) {
  const UintVec bits = (UintVec)a, magnitude = bits & 0x7fffffff;
  const UintVec small = (UintVec)((Vec)magnitude + 0.5f) - 0x3f000000;
  const UintVec normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
  const UintVec special = (IntVec)magnitude > 0x7f800000 ? UintVec{} + 0x7e00 : UintVec{} + 0x7c00;
  const UintVec finite = (IntVec)magnitude < 0x38800000 ? small : normal;
  store_bits(p, (bits >> 16 & 0x8000) | ((IntVec)magnitude >= 0x477ff000 ? special : finite));
}
inline void store_non_temporal(BFloat16* p, Vec a) { store(p, a); }
inline void store_non_temporal(Float16* p, Vec a) { store(p, a); }

#endif
#endif

// The first n < kLanes elements; lanes past them load as zero, and memory past them is not touched.
// AddressSanitizer does not see what masked instructions touch: it is shown copies.
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)

inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Vec load_partial(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline Vec load_partial(const BFloat16* p, int64_t n) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline Vec load_partial(const Float16* p, int64_t n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
inline void store_partial(float* p, Vec a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a); }
inline void store_partial(BFloat16* p, Vec a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), to_bfloat16(a));
}
inline void store_partial(Float16* p, Vec a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

#else

// In pieces of fixed sizes: a loop over n becomes a call, which moves the caller's vectors to the stack. Static, so
// that no weak symbol stays where one is not inlined.
template <class T>
static inline void copy_first(T* to, const T* from, int64_t n) {
#pragma GCC unroll 4
  for (int piece = kLanes / 2; piece > 0; piece /= 2)
    if (n & piece) {
      __builtin_memcpy(to, from, piece * sizeof(T));
      to += piece;
      from += piece;
    }
}

// Under a sanitizer each copy has checks, which take a third of the compilation wherever they are inlined.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FUSIONKIT_PARTIAL [[gnu::noinline]] static
#else
#define FUSIONKIT_PARTIAL static inline
#endif

template <class T>
FUSIONKIT_PARTIAL Vec load_partial(const T* p, int64_t n) {
  T lanes[kLanes] = {};
  copy_first(lanes, p, n);
  return load(lanes);
}
template <class T>
FUSIONKIT_PARTIAL void store_partial(T* p, Vec a, int64_t n) {
  T lanes[kLanes];
  store(lanes, a);
  copy_first(p, lanes, n);
}

#endif

// Calls f with a null pointer of the storage type: visit_floating(dtype, [&](auto* type) { ... }).
template <class F>
inline void visit_floating(DType dtype, F f) {
  if (dtype == DType::kBFloat16) return f(static_cast<BFloat16*>(nullptr));
  if (dtype == DType::kFloat16) return f(static_cast<Float16*>(nullptr));
  f(static_cast<float*>(nullptr));
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
