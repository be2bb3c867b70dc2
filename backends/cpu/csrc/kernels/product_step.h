// One step of a product's sums: a float32 value, or a pair of bfloat16, of A against a vector of B's entries. Every
// kernel adds the steps of a sum in the order of k, in chains that begin at multiples of kLongestChain: the steps of a
// chain one after another, from zero on, and then the chains. So the bits are the same whatever the kernel.
#pragma once

#include <cstdint>

#include "kernels/vec.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

struct FloatStep {
  using Element = float;
  // The rounding of a chain grows with the root of its length: 1536 steps in one have three times the error of these.
  static constexpr int64_t kLongestChain = 128;
  static Vec load_b(const Element* b) {
    Vec entries;
    __builtin_memcpy(&entries, b, sizeof entries);
    return entries;
  }
  static Vec multiply(const Element* a, Vec b, Vec sum) { return fma(broadcast(*a), b, sum); }
};

#ifdef __AVX512BF16__
struct PairStep {
  using Element = uint32_t;
  static constexpr int64_t kLongestChain = INT64_MAX;  // the operands' own rounding is 2^-9
  static Vec load_b(const Element* b) { return reinterpret_cast<Vec>(_mm512_loadu_si512(b)); }
  static Vec multiply(const Element* a, Vec b, Vec sum) {
    const __m512i pair = _mm512_set1_epi32(static_cast<int>(*a));
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(pair),
                                                  reinterpret_cast<__m512bh>(b)));
  }
};
#endif

// The step that multiplies entries of kStep k's.
template <int kStep>
struct StepOf {
  using Type = FloatStep;
};
#ifdef __AVX512BF16__
template <>
struct StepOf<2> {
  using Type = PairStep;
};
#endif

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
