#pragma once

#include <cstddef>

#include "kernels/table.h"

// The gradients of linear_packed with a weight of 8 or 4 bits, which has none itself: dx = dy W^T, of dy's dtype, and
// dbias, each optional. A row of dx has the same bits whatever the other rows are, and how many.
FUSIONKIT_ENTRY_POINTS(void linear_packed_grad(const void* packed, size_t packed_size, int64_t in_features,
                                               int64_t out_features, const Tensor& dy, const Tensor& dx,
                                               const Tensor& dbias);)
