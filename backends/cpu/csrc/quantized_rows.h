// Rows of x times a weight of 8 or 4 bits.
#pragma once

#include "matrix.h"

namespace fusionkit_cpu {

// c = a W + bias for a block that passed require_quantized(), in float32. If the block says so, a is rounded to int8
// first. A row of c has the same bits whatever the other rows are, and how many.
void product_quantized(const Matrix& a, const void* packed, const Matrix& c, const float* bias);

}  // namespace fusionkit_cpu
