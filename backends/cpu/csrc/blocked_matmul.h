// Products by the own blocked loop, for any dtypes and strides.
#pragma once

#include "product.h"

namespace fusionkit_cpu {

void blocked_matmul(const Matrix& a, const Matrix& b, DType arithmetic, const Matrix& c, const ProductOptions& options);

size_t blocked_packed_size(DType arithmetic, int64_t rows, int64_t cols);
void blocked_pack(const Matrix& b, DType arithmetic, void* packed);
void blocked_matmul_packed(const Matrix& a, DType arithmetic, const void* packed, const Matrix& c,
                           const ProductOptions& options);

}  // namespace fusionkit_cpu
