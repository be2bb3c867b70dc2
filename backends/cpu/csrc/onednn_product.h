#pragma once

#include <functional>

#include "kernels/table.h"

// For benchmarks: the product that oneDNN alone computes, whatever the ops run here. weight [K, N] is laid out as the
// library prefers, and the function that is returned sets y [M, N] = x [M, K] weight, all of them contiguous and of
// weight's dtype, float32 or bfloat16. Throws where no oneDNN is loaded, or it has no such product for this processor.
FUSIONKIT_ENTRY_POINTS(std::function<void(const Tensor& x, const Tensor& y)> onednn_product(const Tensor& weight);)
