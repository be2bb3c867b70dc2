// Choice of the instruction set at run time. A kernel family declares its functions once, in its own header:
//
//   FUSIONKIT_FOR_EACH_ISA(void swiglu(const Tensor& gate, const Tensor& up, const Tensor& y);)
//
// defines them in a .cc of kernels/, inside `namespace fusionkit_cpu::FUSIONKIT_ISA`, and is called with
//
//   FUSIONKIT_DISPATCH(swiglu, gate, up, y);
#pragma once

#include "fusionkit_cpu.h"

namespace fusionkit_cpu {

enum class Isa { kPortable, kAvx2, kAvx512 };  // ascending preference

// Throws std::invalid_argument when FUSIONKIT_CPU_ISA names one that is not available.
Isa current_isa();

}  // namespace fusionkit_cpu

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
