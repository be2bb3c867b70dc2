// The gradient through a weight of 8 or 4 bits.
#pragma once

#include "matrix.h"

namespace fusionkit_cpu {

// dx = dy W^T for a block that passed require_quantized(), in float32 with one rounding, at the end. dx.col_stride
// is 1. A row of dx has the same bits whatever the other rows are, and how many. Beside dx it takes 16 MB of the
// weight's floats or kQuantizedCols columns of them, such columns again for each thread, and up to 64 MB of sums.
void gradient_quantized(const Matrix& dy, const void* packed, const Matrix& dx);

}  // namespace fusionkit_cpu
