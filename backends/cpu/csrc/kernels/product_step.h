// One step of a product's sums: a float32 value, or a pair of bfloat16, of A against a vector of B's entries. Every
// kernel adds the steps of a sum in the order of k, one after another: the same bits whatever the kernel.
#pragma once

#include <cstdint>

#include "kernels/vec.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

struct FloatStep {
  using Element = float;
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
