#pragma once

#include "kernels/table.h"

// The chain rule for the other gradients. x is floating; factor [1] float32.
FUSIONKIT_ENTRY_POINTS(void scale(const Tensor& x, const Tensor& factor);                    // x *= factor[0], in place
                       void scale(const Tensor& x, const Tensor& factor, const Tensor& y);)  // y = x * factor[0]

FUSIONKIT_KERNELS(scale,
                  // y = x * factor; both are contiguous, and may be one.
                  void scale(const Tensor& x, float factor, const Tensor& y);)
