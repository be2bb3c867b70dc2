// The product with a weight of 8 or 4 bits of x that is rounded to int8: four bytes of x are multiplied at once.
//
// A run of x, see kernels/quantized_product.h, has a scale: its largest magnitude over 127, once the row is divided by
// its power of two. So x = row_scale * scale * code, and each code is within half a one of x.
#pragma once

#include "kernels/quantized_product.h"

namespace fusionkit_cpu {

struct RoundedRows {
  int64_t rows, depth;  // depth is a multiple of kRun, what is past x's being zero
  int64_t run, num_runs;
  int8_t* codes;        // tile by tile, [depth / 4, rows of the tile, 4]
  int32_t* first_sums;  // tile by tile, [num_runs, rows of the tile]: take back what codes of the weight have too much
  float* scales;        // as first_sums
  float* sums;          // as first_sums: scale * the sum of the codes
  float* row_scales;    // [rows]: powers of two; NaN: x is not finite, and the row's codes hold nothing
};

}  // namespace fusionkit_cpu

FUSIONKIT_KERNELS(quantized_bytes,
                  // Whether the target has instructions for the products of bytes with codes of so many bits. Without,
                  // digits hold the codes of x.
                  bool multiplies_bytes(int bits);
                  // Rows [begin, end) of x, whose col_stride is 1, at their place in `rows`. Of weights in this format.
                  void round_rows(const Matrix& x, int64_t begin, int64_t end, const QuantizedFormat& format,
                                  const RoundedRows& rows);
                  // As multiply_quantized.
                  void multiply_bytes(const RoundedRows& x, const QuantizedFormat& format, const void* panel,
                                      const Matrix& c, const float* bias, float* sums);)
