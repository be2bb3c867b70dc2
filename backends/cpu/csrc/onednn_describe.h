// Descriptions of operands and primitives, oneDNN's objects before anything is allocated.
#pragma once

#include <cstdint>
#include <vector>

#include "matrix.h"
#include "onednn_operation.h"

namespace fusionkit_cpu::onednn {

Owned<MemoryDesc> describe(const Matrix& m);
// The layout is left to the primitive.
Owned<MemoryDesc> describe_any(DType dtype, int64_t rows, int64_t cols);
Owned<MemoryDesc> describe_blob(const std::vector<uint8_t>& blob);

// bias may be null.
Owned<PrimitiveDesc> matmul_desc(const MemoryDesc* a, const MemoryDesc* b, const MemoryDesc* bias, const MemoryDesc* c,
                                 bool accumulate);
Owned<PrimitiveDesc> reorder_desc(const MemoryDesc* from, const MemoryDesc* to);

}  // namespace fusionkit_cpu::onednn
