#pragma once

#include "kernels/table.h"

// y = silu(gate) * up, all of one shape.
#define FUSIONKIT_SWIGLU                                              \
  void swiglu(const Tensor& gate, const Tensor& up, const Tensor& y); \
  void swiglu_grad(const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate, const Tensor& dup);

FUSIONKIT_ENTRY_POINTS(FUSIONKIT_SWIGLU)
FUSIONKIT_KERNELS(swiglu, FUSIONKIT_SWIGLU)
