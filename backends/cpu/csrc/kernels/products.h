// The own matrix product, one thread's share at a time, and the row kernels around products.
//
// A panel is some columns of B laid out for the micro-kernel: for each k (each pair of k for bfloat16 units) its
// columns side by side. oneDNN's preferred layout of a weight is such panels too, 64 columns wide where it has AVX-512.
#pragma once

#include "kernels/table.h"
#include "matrix.h"

namespace fusionkit_cpu {

// How B lies in panels: each `cols` wide and `depth` deep, what lies outside B being zero.
struct PanelFormat {
  DType compute;
  int64_t cols, depth;

  int64_t panel_bytes() const { return cols * depth * element_size(compute); }
  int64_t count(int64_t num_cols) const { return (num_cols + cols - 1) / cols; }
};

// What multiply_tile does with the numbers in c: nothing, adds to them, or takes them for the sums of the k's before.
enum class Sums { kStart, kAdd, kContinue };

}  // namespace fusionkit_cpu

FUSIONKIT_KERNELS(
    panels,
    // The panels that multiply_tile takes.
    PanelFormat own_panels(DType compute, int64_t depth);
    // Whether pack_strips writes panels of this width.
    bool packs_panels(const PanelFormat& format);
    // Panels are packed in strips, a whole number of vectors deep: this many to a panel.
    int64_t num_strips(const PanelFormat& format);
    // b's elements, rounded to `round_to` first. Strips [begin, end) of all panels of b are written at their place.
    void pack_strips(const Matrix& b, DType round_to, const PanelFormat& format, int64_t begin, int64_t end,
                     void* panels);
    // to = the transpose of from, in to's dtype, rounded to it. Both are row-major. Rows [begin, end) of `to`.
    void transpose_rows(const Matrix& from, const Matrix& to, int64_t begin, int64_t end);)

FUSIONKIT_KERNELS(
    blocked_product,
    // The dtype that products of this storage multiply in: bfloat16 only where the processor has units for it.
    DType compute_dtype(DType storage);
    // Whether oneDNN's products are wanted where it is there.
    bool prefers_onednn();

    // The rows of C's tiles where there are `rows`: whole panels, about equal ones.
    int64_t tile_rows(int64_t rows); int64_t tile_scratch_bytes(int64_t cols);
    // The rows of A of one tile, laid out for multiply_tile in left_bytes() bytes, in num_blocks() blocks of k.
    // Blocks [begin, end) are written at their place.
    int64_t num_blocks(const PanelFormat& format); int64_t left_bytes(int64_t rows, const PanelFormat& format);
    void pack_left(const Matrix& a, const PanelFormat& format, int64_t begin, int64_t end, void* left);
    // c = A B + bias for a tile of at most tile_rows() rows, from `depth` k's that pack_left and pack_strips write, or
    // with what `sums` says of c. c.col_stride is 1, and its dtype is float32 unless sums is kStart. bias may be null.
    // `scratch` has tile_scratch_bytes(c.cols) bytes. The sum over k has one order, whatever the tile and wherever
    // whole chains are cut, unless it adds.
    void multiply_tile(const void* left, const PanelFormat& format, const void* panels, int64_t depth, const Matrix& c,
                       const float* bias, Sums sums, void* scratch);)

FUSIONKIT_KERNELS(
    unpacked_product,
    // c = a b + bias, or c += a b, from b as it is stored, row by row: b.col_stride is 1. a has the dtype that
    // compute_dtype() gives; its rows are b.rows elements, and zeros up to a whole number of steps. `scratch` has
    // unpacked_scratch_bytes(c.rows, c.cols) bytes. The sum over k has multiply_tile's order.
    void multiply_unpacked(const Matrix& a, const Matrix& b, DType round_to, const Matrix& c, const float* bias,
                           bool accumulate, void* scratch);
    int64_t unpacked_scratch_bytes(int64_t rows, int64_t cols);
    // With more rows, packing B costs less than reading it in short pieces.
    int64_t most_unpacked_rows();)

FUSIONKIT_KERNELS(
    product_rows,
    // to = from, rounded to `round_to` and then to to's dtype, plus bias[col] unless null. to.col_stride is 1.
    void convert_rows(const Matrix& from, DType round_to, const float* bias, const Matrix& to);
    // sums[j] = the sum of column j of m in float32, in row order.
    void sum_columns(const Matrix& m, float* sums);)
