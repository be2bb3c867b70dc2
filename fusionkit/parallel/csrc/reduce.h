// The arithmetic of a reduction: out = sources[0] op sources[1] op ..., always in this order.
#pragma once

#include "dtype.h"

namespace fusionkit_parallel {

enum class ReduceOp : int32_t { kSum, kAverage, kMax, kMin, kProduct };  // in the order of Paddle's C_CCLReduceOp
constexpr int kNumReduceOps = 5;

const char* name_of(ReduceOp op);

// False for what has no meaning: an order of complex numbers, an average of bools.
bool can_reduce(DType dtype, ReduceOp op);

// Reduces `count` elements of each source into `out`, which may be one of them.
//
// float16 and bfloat16 are reduced in float32 and rounded once. Integers wrap; their average is truncated towards zero.
// A sum of bools is "or", a product "and". NaN wins in min and max.
void reduce(DType dtype, ReduceOp op, const char* const* sources, int num_sources, size_t count, char* out);

// out = sources[0] + sources[1] + ... in this order, in float32, rounded once to out's dtype. Both dtypes are float16,
// bfloat16 or float32; `out` may be a source of its own dtype.
void sum_in_order(DType dtype, const char* const* sources, int num_sources, size_t count, DType out_dtype, char* out);

}  // namespace fusionkit_parallel
