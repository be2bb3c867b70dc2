// What the compiler knows of a panel's codes: their bits, and what value = code * scale + minimum needs.
#pragma once

#include <type_traits>

#include "kernels/pairs.h"
#include "kernels/quantized_product.h"
#include "kernels/simd.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

template <int kBits_, bool kHasMinimums_, bool kHasLevels_>
struct Form {
  using Word = UintVec;
  static constexpr int kBits = kBits_, kPerWord = 32 / kBits;
  static constexpr bool kHasMinimums = kHasMinimums_, kHasLevels = kHasLevels_;
  // Of 4 bits with a sign, codes() gives so much more than the code: no instruction extends their sign.
  static constexpr int kExcess = kBits == 4 && !kHasMinimums ? 8 : 0;

  static Word load_word(const uint32_t* p) {
    Word words;
    __builtin_memcpy(&words, p, sizeof words);
    return kExcess ? words ^ 0x88888888u : words;
  }

  // The pair of codes (0, 2), (1, 3), (4, 6) or (5, 7) of each word, kExcess included.
  static PairVec codes(Word words, int pair) {
    const auto wide = (UnsignedPairVec)words;
    if constexpr (kBits == 8) {
      if constexpr (kHasMinimums) return (PairVec)(pair == 0 ? wide & 0xff : wide >> 8);
      return pair == 0 ? (PairVec)(wide << 8) >> 8 : (PairVec)wide >> 8;
    }
    if (pair == 0) return (PairVec)(wide & 15);
    if (pair == 3) return (PairVec)(wide >> 12);
    return (PairVec)(wide >> (pair == 1 ? 8 : 4) & 15);
  }

  // The bit of a word at which its i-th code begins.
  static constexpr int bit_of(int i) { return i < 4 ? 8 * i : 8 * (i - 4) + 4; }

  // The code at `bit` as a float.
  static Vec code(UintVec words, int bit) {
    if constexpr (kHasMinimums) return __builtin_convertvector((IntVec)(words >> bit & ((1u << kBits) - 1)), Vec);
    return __builtin_convertvector((IntVec)(words << (32 - kBits - bit)) >> (32 - kBits), Vec);
  }
};

// f(Form).
template <class F>
void visit_form(const QuantizedFormat& format, F f) {
  const auto visit = [&](auto has_levels) {
    constexpr bool kHasLevels = decltype(has_levels)::value;
    if (format.bits == 8) return format.has_minimums ? f(Form<8, true, kHasLevels>{}) : f(Form<8, false, kHasLevels>{});
    format.has_minimums ? f(Form<4, true, kHasLevels>{}) : f(Form<4, false, kHasLevels>{});
  };
  format.has_levels ? visit(std::true_type{}) : visit(std::false_type{});
}

// kLanes integers of 8 bits.
inline Vec load(const int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  Vec values;
  for (int i = 0; i < kLanes; ++i) values[i] = p[i];
  return values;
#endif
}

// A group's scales (which: 0) or minimums (1) for a vector of columns. block: the floats of two levels.
template <class Form>
Vec load_scale(const QuantizedFormat& format, const char* group, const char* block, int64_t col, int which) {
  const int64_t at = which * kQuantizedCols + col;
  if constexpr (Form::kHasLevels)  // the product is a float32 scale: it rounds nothing
    return load(reinterpret_cast<const int8_t*>(group) + at) * load(reinterpret_cast<const float*>(block) + at);
  if (format.scale_dtype == DType::kFloat16) return load(reinterpret_cast<const Float16*>(group) + at);
  return load(reinterpret_cast<const float*>(group) + at);
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
