// Choice of the instruction set at run time. An op declares in its header what frameworks call, and what its kernels
// define in a .cc of kernels/, inside `namespace fusionkit_cpu::FUSIONKIT_ISA`:
//
//   FUSIONKIT_ENTRY_POINTS(void scale(const Tensor& x, const Tensor& factor);)
//   FUSIONKIT_FOR_EACH_ISA(void scale(const Tensor& x, float factor, const Tensor& y);)
//
// The op's .cc defines the entry points, which check their arguments and call the kernels with
//
//   FUSIONKIT_DISPATCH(scale, x, value, x);
#pragma once

#include "fusionkit_cpu.h"

namespace fusionkit_cpu {

enum class Isa { kPortable, kAvx2, kAvx512 };  // ascending preference

// Throws std::invalid_argument when FUSIONKIT_CPU_ISA names one that is not available.
Isa current_isa();

}  // namespace fusionkit_cpu

// Declares functions that the library exports.
#define FUSIONKIT_ENTRY_POINTS(...)                                                 \
  namespace fusionkit_cpu {                                                         \
  _Pragma("GCC visibility push(default)") __VA_ARGS__ _Pragma("GCC visibility pop") \
  }

// A build for one instruction set alone names it in FUSIONKIT_ONLY_ISA.
#if !defined(__x86_64__) && !defined(FUSIONKIT_ONLY_ISA)
#define FUSIONKIT_ONLY_ISA portable
#endif

#if !defined(FUSIONKIT_ONLY_ISA)

#define FUSIONKIT_FOR_EACH_ISA(...) \
  namespace fusionkit_cpu {         \
  namespace avx512 {                \
  __VA_ARGS__                       \
  }                                 \
  namespace avx2 {                  \
  __VA_ARGS__                       \
  }                                 \
  namespace portable {              \
  __VA_ARGS__                       \
  }                                 \
  }

#define FUSIONKIT_DISPATCH(function, ...)                        \
  ([&] {                                                         \
    switch (::fusionkit_cpu::current_isa()) {                    \
      case ::fusionkit_cpu::Isa::kAvx512:                        \
        return ::fusionkit_cpu::avx512::function(__VA_ARGS__);   \
      case ::fusionkit_cpu::Isa::kAvx2:                          \
        return ::fusionkit_cpu::avx2::function(__VA_ARGS__);     \
      default:                                                   \
        return ::fusionkit_cpu::portable::function(__VA_ARGS__); \
    }                                                            \
  }())

#else

#define FUSIONKIT_FOR_EACH_ISA(...) \
  namespace fusionkit_cpu {         \
  namespace FUSIONKIT_ONLY_ISA {    \
  __VA_ARGS__                       \
  }                                 \
  }

#define FUSIONKIT_DISPATCH(function, ...) \
  ((void)::fusionkit_cpu::current_isa(), ::fusionkit_cpu::FUSIONKIT_ONLY_ISA::function(__VA_ARGS__))

#endif
