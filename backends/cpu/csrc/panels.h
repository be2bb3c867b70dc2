// Operands in the order that products read them in, made in parallel.
#pragma once

#include "kernels/products.h"

namespace fusionkit_cpu {

// All panels of b, its elements rounded to `round_to`.
void pack_panels(const Matrix& b, DType round_to, const PanelFormat& format, void* panels);

// to = a, row-major, in the dtype that `compute` names (bfloat16 only where compute_dtype() gives it).
void make_row_major(const Matrix& a, const Matrix& to);

}  // namespace fusionkit_cpu
