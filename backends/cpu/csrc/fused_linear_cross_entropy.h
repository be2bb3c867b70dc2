#pragma once

#include "kernels/table.h"
#include "matrix.h"

// loss_sum [1] float32 = sum over labels != ignore_index of logsumexp(x W) - (x W)[label]; num_tokens [1] int64.
// labels [tokens] int64 / int32, x [tokens, K], weight [K, V]. The logits are never held whole. When dx or dweight is
// present it receives d(loss_sum): the products are taken while a chunk of logits is at hand.
FUSIONKIT_ENTRY_POINTS(void linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& labels,
                                                 int64_t ignore_index, const Tensor& loss_sum, const Tensor& num_tokens,
                                                 const Tensor& dx, const Tensor& dweight);)

FUSIONKIT_FOR_EACH_ISA(
    // logsumexp(logits) - logits[label]. Unless gradient is null it receives softmax(logits) - onehot(label), float32
    // or bfloat16, and may be the logits themselves, and gradient_sum what its rounded values add up to. The logits are
    // overwritten.
    double cross_entropy_row(float* logits, int64_t n, int64_t label, DType gradient_dtype, void* gradient,
                             float* gradient_sum);

    // sums[row] -= factor * m[row][col] for the rows [begin, end).
    void subtract_column(const Matrix& m, int64_t col, float factor, int64_t begin, int64_t end, float* sums);)
