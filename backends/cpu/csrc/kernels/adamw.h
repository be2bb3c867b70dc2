#pragma once

#include "kernels/table.h"

FUSIONKIT_FOR_EACH_ISA(
    // Contiguous tensors of n elements; grad of any floating dtype.
    void adamw(float* param, const Tensor& grad, float* moment1, float* moment2, int64_t n,
               const AdamWFactors& factors);)
