// Products by oneDNN. Both operands are float32 or both bfloat16; c is float32 or theirs; sums are float32.
#pragma once

#include <cstdint>
#include <vector>

#include "matrix.h"

namespace fusionkit_cpu {

// One stride is 1 and the other leaves no overlap: what oneDNN takes without a copy.
bool onednn_takes(const Matrix& m);

// c = a b + bias, or c += a b. bias (float32, b.cols elements) may be null.
void onednn_matmul(const Matrix& a, const Matrix& b, const Matrix& c, const float* bias, bool accumulate);

// The same with b in the layout that oneDNN describes as `layout`; see onednn_layout.h.
void onednn_matmul_packed(const Matrix& a, const std::vector<uint8_t>& layout, const void* packed, const Matrix& c,
                          const float* bias, bool accumulate);

// Major, minor and patch version and the instruction set: a layout is valid where all are the same.
std::vector<int32_t> onednn_identity();

}  // namespace fusionkit_cpu
