// The product with a weight of 8 or 4 bits: how its panels lie, and what is done with one of them.
//
// A panel holds kQuantizedCols columns, what is past the last one being zero. Its groups of k's follow each other, the
// last one shorter. A group has the scales of all columns, their minimums if there are any, and words of 32 bits, side
// by side for the columns: each word holds the next 4 codes of its column in 8 bits, or the next 8 in 4 bits. Of these
// the first four are the low halves of the word's bytes, and the others the high ones. The layout is the same for all
// instruction sets.
#pragma once

#include "kernels/products.h"

namespace fusionkit_cpu {

constexpr int64_t kQuantizedCols = 64;

// value = code * scale + minimum: signed codes without minimums, codes from 0 on with them.
struct QuantizedFormat {
  int bits;  // 8 or 4
  bool has_minimums;
  DType scale_dtype;          // float16 or float32; the minimums' too
  int64_t depth, group_size;  // group_size is a multiple of 16, or at least depth
};

static inline int64_t codes_per_word(const QuantizedFormat& format) { return 32 / format.bits; }

static inline int64_t scale_bytes(const QuantizedFormat& format) {
  return kQuantizedCols * element_size(format.scale_dtype) * (format.has_minimums ? 2 : 1);
}

// Of a group of `depth` k's.
static inline int64_t group_bytes(const QuantizedFormat& format, int64_t depth) {
  const int64_t words = (depth + codes_per_word(format) - 1) / codes_per_word(format);
  return scale_bytes(format) + words * kQuantizedCols * int64_t{sizeof(uint32_t)};
}

static inline int64_t panel_bytes(const QuantizedFormat& format) {
  const int64_t groups = format.depth / format.group_size, rest = format.depth % format.group_size;
  return groups * group_bytes(format, format.group_size) + (rest > 0 ? group_bytes(format, rest) : 0);
}

static inline int64_t quantized_panels(int64_t cols) { return (cols + kQuantizedCols - 1) / kQuantizedCols; }

}  // namespace fusionkit_cpu

FUSIONKIT_KERNELS(quantized_product,
                  // c = a W + bias for the columns of one panel: c has as many, or fewer in the last panel. a is
                  // float32 and each of its rows contiguous; c.col_stride is 1; bias may be null. The sum over k has
                  // multiply_tile's order, so that the bits are those of the product with the dequantized panel.
                  void multiply_quantized(const Matrix& a, const QuantizedFormat& format, const void* panel,
                                          const Matrix& c, const float* bias);
                  // A panel's values in own_panels(float32, depth), one after another.
                  void dequantize_panel(const QuantizedFormat& format, const void* panel, float* values);)
