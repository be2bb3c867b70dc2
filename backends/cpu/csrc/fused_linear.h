#pragma once

#include "kernels/table.h"

// x [..., K]; weight [K, N], dtype of x or float32 (then rounded to x's dtype: the arithmetic is the activations');
// bias [N], dtype of x or float32, optional. y [..., N], dtype of x, accumulated in float32.
// batch_invariant: a row of y has the same bits whatever the other rows are, and how many.
FUSIONKIT_ENTRY_POINTS(void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y,
                                   bool batch_invariant = false);
                       // dx, dweight (weight's dtype), dbias (bias' dtype): each optional.
                       void linear_grad(const Tensor& x, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                                        const Tensor& dweight, const Tensor& dbias);)
