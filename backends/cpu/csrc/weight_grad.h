#pragma once

#include "kernels/table.h"

// dweight = x^T dy, or with `accumulate` += it: then dweight is float32. x [rows, in_features], dy [rows,
// out_features], dweight [in_features, out_features] in x's dtype or float32.
FUSIONKIT_ENTRY_POINTS(void weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dweight, bool accumulate);)
