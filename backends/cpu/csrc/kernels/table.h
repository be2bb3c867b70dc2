// Choice of the target at run time. An op declares in its header what frameworks call, and what its kernels define in
// a file of kernels/, which comes first, inside `namespace fusionkit_cpu::FUSIONKIT_ISA`:
//
//   FUSIONKIT_ENTRY_POINTS(void scale(const Tensor& x, const Tensor& factor);)
//   FUSIONKIT_KERNELS(scale, void scale(const Tensor& x, float factor, const Tensor& y);)
//
// The op's .cc defines the entry points, which check their arguments and call the kernels with
//
//   FUSIONKIT_DISPATCH(scale, x, value, x);
//
// The build writes targets.h from backends/cpu/targets.py and names it in FUSIONKIT_TARGETS for what dispatches.
// Kernels see their own target alone, and callers none: another target compiles neither again.
#pragma once

#include "fusionkit_cpu.h"

// Declares functions that the library exports.
#define FUSIONKIT_ENTRY_POINTS(...)                                                 \
  namespace fusionkit_cpu {                                                         \
  _Pragma("GCC visibility push(default)") __VA_ARGS__ _Pragma("GCC visibility pop") \
  }

#if defined(FUSIONKIT_TARGETS)

#include FUSIONKIT_TARGETS

namespace fusionkit_cpu {

// Throws std::invalid_argument when FUSIONKIT_CPU_ISA names one that is not available.
Isa current_isa();

}  // namespace fusionkit_cpu

// FUSIONKIT_IF(mark)(...) is nothing, unless `mark` is defined as a comma and the macro to call.
#define FUSIONKIT_IF(...) FUSIONKIT_SECOND(__VA_ARGS__, FUSIONKIT_NOTHING, )
#define FUSIONKIT_SECOND(...) FUSIONKIT_TAKE_SECOND(__VA_ARGS__)
#define FUSIONKIT_TAKE_SECOND(first, second, ...) second
#define FUSIONKIT_NOTHING(...)

// In the namespace of each target that compiles kernels/<unit>.cc.
#define FUSIONKIT_KERNELS(unit, ...)      \
  namespace fusionkit_cpu {               \
  FUSIONKIT_IN_WHOLE_TARGETS(__VA_ARGS__) \
  FUSIONKIT_IN_PARTS(unit, __VA_ARGS__)   \
  }

#elif defined(FUSIONKIT_ISA)

#define FUSIONKIT_KERNELS(unit, ...) \
  namespace fusionkit_cpu {          \
  namespace FUSIONKIT_ISA {          \
  __VA_ARGS__                        \
  }                                  \
  }

#else

#define FUSIONKIT_KERNELS(unit, ...)

#endif
