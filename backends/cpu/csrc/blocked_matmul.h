// Products by the own blocked loop, for any dtypes and strides.
#pragma once

#include "kernels/products.h"
#include "product.h"

namespace fusionkit_cpu {

void blocked_matmul(const Matrix& a, const Matrix& b, DType arithmetic, const Matrix& c, const ProductOptions& options);

// How the own loop lays out a B of this depth.
PanelFormat blocked_panels(DType arithmetic, int64_t depth);
// From any panels that pack_panels writes.
void blocked_matmul_packed(const Matrix& a, const PanelFormat& panels, const void* packed, const Matrix& c,
                           const ProductOptions& options);

}  // namespace fusionkit_cpu
