// Vectors of floats for the instruction set this file is compiled for. Arithmetic uses the compiler's vector
// operators; only what they cannot express is written as intrinsics.
//
// Included by kernels/*.cc only. Every function lives in the namespace of its instruction set: the linker merges equal
// inline functions, and must not give AVX-512 code to a processor without it.
#pragma once

#include <cstdint>
#if defined(__SSE2__)
// GCC 12 calls its own placeholder operands uninitialised (GCC bug 105593, mended in 13).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));  // also what comparing two Vec gives: 0 or -1
typedef uint32_t UintVec __attribute__((vector_size(4 * kLanes)));
typedef double DoubleVec __attribute__((vector_size(8 * kLanes)));
typedef int64_t LongVec __attribute__((vector_size(8 * kLanes)));

inline Vec broadcast(float x) { return x - Vec{}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }  // fused under -ffp-contract=fast where the processor can
inline Vec abs(Vec a) { return (Vec)((IntVec)a & 0x7fffffff); }

// As the instructions: the second argument when either is NaN.
#if defined(__AVX512F__)
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
#elif defined(__AVX2__)
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
#else
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec sqrt(Vec a) {
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
#endif

// Whether a < b in some lane; false of NaN.
#if defined(__AVX512F__)
inline bool any_less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0; }
#elif defined(__AVX2__)
inline bool any_less(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)) != 0; }
#else
inline bool any_less(Vec a, Vec b) {
  const IntVec less = a < b;
  for (int i = 0; i < kLanes; ++i)
    if (less[i]) return true;
  return false;
}
#endif

// Stores past the caches, for results larger than they are: no line is read before it is written, and nothing that is
// still needed is evicted. The address is aligned to the vector. Where there are none, plain stores.
#if defined(__AVX512F__)
inline void store_non_temporal(float* p, Vec a) { _mm512_stream_ps(p, a); }
#elif defined(__AVX2__)
inline void store_non_temporal(float* p, Vec a) { _mm256_stream_ps(p, a); }
#elif defined(__SSE2__)
inline void store_non_temporal(float* p, Vec a) { _mm_stream_ps(p, a); }
#else
inline void store_non_temporal(float* p, Vec a) { *reinterpret_cast<Vec*>(p) = a; }
#endif

// Before another thread may read what was stored past the caches.
inline void fence_non_temporal() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Over the lanes as a tree, in registers: the order does not depend on the data.
template <int kWidth, class Combine>
[[gnu::always_inline]] inline Vec combine_halves(Vec a, const Combine& combine) {
  IntVec other{};
  for (int lane = 0; lane < kLanes; ++lane) other[lane] = lane ^ kWidth;
  return combine(a, __builtin_shuffle(a, other));
}

template <class Combine>
[[gnu::always_inline]] inline float reduce(Vec a, const Combine& combine) {
  if constexpr (kLanes > 8) a = combine_halves<8>(a, combine);
  if constexpr (kLanes > 4) a = combine_halves<4>(a, combine);
  a = combine_halves<2>(a, combine);
  return combine_halves<1>(a, combine)[0];
}

inline float sum(Vec a) {
  return reduce(a, [](Vec x, Vec y) { return x + y; });
}

static inline float maximum(Vec a) {
  return reduce(a, [](Vec x, Vec y) { return max(x, y); });
}

constexpr float kRoundsToInteger = 12582912.0f;  // 1.5 * 2^23, once it is added

// e^x = mantissa * 2^n with mantissa near 1, within 1.1 ULP for |x| up to 700; `shifted` is n + kRoundsToInteger.
struct ExpParts {
  Vec mantissa, shifted;
};

// x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts, the first with 9 bits, so that n times it is exact.
inline ExpParts exp_parts(Vec x) {
  const Vec shifted = fma(x, broadcast(1.44269504f), broadcast(kRoundsToInteger));
  const Vec n = shifted - kRoundsToInteger;
  const Vec r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));
  // Minimax polynomial of (e^r - 1 - r) / r^2, as in Cephes' expf.
  Vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  return {fma(p, r * r, r) + 1.0f, shifted};
}

inline IntVec exponent_of(const ExpParts& parts) { return (IntVec)parts.shifted - (IntVec)broadcast(kRoundsToInteger); }

// e^x: below 1.1 ULP, subnormal results included; 0 for -inf, inf for overflow, NaN for NaN.
static inline Vec exp(Vec x) {
  const Vec low = broadcast(-104.0f), high = broadcast(89.0f);  // past both ends of float32
  const ExpParts parts = exp_parts(min(high, max(low, x)));     // NaN stays
  const Vec p = parts.mantissa;
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, parts.shifted - kRoundsToInteger);
#else
  // 2^n in two factors: 2^128 and subnormal powers have no float of their own.
  const IntVec exponent = exponent_of(parts);
  const IntVec half = exponent >> 1;
  return p * (Vec)((half + 127) << 23) * (Vec)((exponent - half + 127) << 23);
#endif
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
