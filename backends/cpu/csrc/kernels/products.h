// The own matrix product, one thread's share at a time, and the row kernels around products.
//
// A panel is a strip of an operand laid out for the micro-kernel: for each k (each pair of k for bfloat16 units) its
// columns side by side, padded with zeros to the panel's width. B is cut into panels of panel_cols() columns.
#pragma once

#include "kernels/table.h"
#include "matrix.h"

FUSIONKIT_FOR_EACH_ISA(
    // The dtype that products of this storage multiply in: bfloat16 only where the processor has units for it.
    DType compute_dtype(DType storage);

    int64_t panel_cols();
    // Bytes of one panel of B with `depth` rows.
    int64_t panel_bytes(DType compute, int64_t depth);
    // b's elements, rounded to `round_to` first. Panels [begin, end) of b are written at their place in `panels`.
    void pack_panels(const Matrix& b, DType round_to, DType compute, int64_t begin, int64_t end, void* panels);

    int64_t tile_rows(); int64_t tile_scratch_bytes(int64_t cols);
    // c = a B + bias, or c += a B, for a tile of at most tile_rows() rows. c.col_stride is 1. bias may be null.
    // `scratch` has tile_scratch_bytes(c.cols) bytes. The sum over k has one order, whatever the tile.
    void multiply_tile(const Matrix& a, DType compute, const void* panels, const Matrix& c, const float* bias,
                       bool accumulate, void* scratch);

    // Whether multiply_few_rows takes this product.
    bool few_rows(const Matrix& a, const Matrix& b); int64_t few_rows_scratch_bytes(int64_t rows, int64_t cols);
    // As multiply_tile, from b as it is stored; a holds c.rows rows of b.rows elements.
    void multiply_few_rows(const float* a, const Matrix& b, DType round_to, const Matrix& c, const float* bias,
                           bool accumulate, void* scratch);

    // to = from, rounded to `round_to` and then to to's dtype, plus bias[col] unless null. to.col_stride is 1.
    void convert_rows(const Matrix& from, DType round_to, const float* bias, const Matrix& to);
    // sums[j] = the sum of column j of m in float32, in row order.
    void sum_columns(const Matrix& m, float* sums);

    // logsumexp(logits) - logits[label]. Unless gradient is null it receives softmax(logits) - onehot(label), float32
    // or bfloat16, and may be the logits themselves. The logits are overwritten.
    double cross_entropy_row(float* logits, int64_t n, int64_t label, DType gradient_dtype, void* gradient);)
