// A weight in the layout of the library that will multiply it: one block of bytes that describes itself.
#pragma once

#include "product.h"

namespace fusionkit_cpu {

// batch_invariant: in panels that the own loop reads. Most layouts of oneDNN are such.
size_t packed_size(const Matrix& weight, DType arithmetic, bool batch_invariant);
void pack(const Matrix& weight, DType arithmetic, bool batch_invariant, void* packed);

// Throws, naming `op`, unless the block is whole and was made for this product by the library now in use. A block of
// float32 takes a of any dtype, and is multiplied in float32.
void require_packed(const char* op, const void* packed, size_t packed_size, DType arithmetic, int64_t in_features,
                    int64_t out_features, bool batch_invariant);
// c = a W + bias for a block that passed require_packed().
void product_packed(const Matrix& a, const void* packed, const Matrix& c, const float* bias, bool batch_invariant);

}  // namespace fusionkit_cpu
