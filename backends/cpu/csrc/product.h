// Matrix products of stored operands: one interface over oneDNN and the own blocked loop.
//
// float16 storage is multiplied as float32 on either: processors without AVX512-FP16 have no units for it. So is
// bfloat16 where the processor lacks AVX512-BF16. oneDNN serves AVX-512 only, and where that is the processor's best: a
// lower one that was forced runs the own loop, which is compiled for it. Up to eight rows run in a loop of ours in any
// case, which reads B once as it is stored: 3 ms against 15 for 1 x 5120 x 5120 in bfloat16 on two Zen 5 cores.
//
// The own loops add each sum in one order of k, whatever the rows: see kernels/operands.h. oneDNN splits k by sizes
// and threads. So a product that is to be batch invariant runs the own loops.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "matrix.h"

namespace fusionkit_cpu {

struct ProductOptions {
  const float* bias = nullptr;   // c.cols elements
  bool accumulate = false;       // c += a b; c is float32
  bool batch_invariant = false;  // a row of c has the same bits whatever the other rows are, and how many
};

bool uses_onednn();
// The dtype that operands of this arithmetic are multiplied in: bfloat16 or float32.
DType compute_dtype(DType arithmetic);

// c = a b. b's elements are rounded to `arithmetic` first, the dtype of the activations; a has that dtype, or float32.
// c.col_stride is 1. Any sizes, zero included, and any strides of a and b.
void product(const Matrix& a, const Matrix& b, DType arithmetic, const Matrix& c, const ProductOptions& options = {});

// to = from, rounded to `round_to` and to to's dtype, plus bias unless null; in parallel. to.col_stride is 1.
void convert(const Matrix& from, DType round_to, const float* bias, const Matrix& to);

// m rounded to `round_to`, stored as `dtype` in `memory` (rows * cols elements), in the order of axes that m has.
Matrix converted(const Matrix& m, DType round_to, DType dtype, void* memory);

}  // namespace fusionkit_cpu
