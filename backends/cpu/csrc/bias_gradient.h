// The gradient of a linear layer's bias.
#pragma once

#include "matrix.h"

namespace fusionkit_cpu {

// dbias = the sum of dy's rows, in their order and in float32. dbias is contiguous.
void sum_rows(const Matrix& dy, const Tensor& dbias);

}  // namespace fusionkit_cpu
