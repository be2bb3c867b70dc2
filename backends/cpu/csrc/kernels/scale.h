#pragma once

#include "kernels/table.h"

FUSIONKIT_FOR_EACH_ISA(
    // y = x * factor; both are contiguous, and may be one.
    void scale(const Tensor& x, float factor, const Tensor& y);)
