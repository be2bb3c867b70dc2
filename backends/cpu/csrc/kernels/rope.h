#pragma once

#include "kernels/table.h"

FUSIONKIT_FOR_EACH_ISA(
    // Checked arguments, as in fusionkit_cpu.h; positions has one entry for each of the B * S tokens.
    void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const int64_t* positions, bool interleaved,
              bool inverse, const Tensor& y);)
