#pragma once

#include "kernels/table.h"

FUSIONKIT_FOR_EACH_ISA(
    // x is contiguous.
    void scale(const Tensor& x, float factor);)
