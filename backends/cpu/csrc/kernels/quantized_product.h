// The product with a weight of 8 or 4 bits: how its panels lie, and what is done with one of them. x becomes integers
// of 16 bits, whose products with codes have exact sums in 32 bits: the instructions for pairs of such integers take
// twice as many products as those for floats. Or it is rounded to integers of 8 bits; see kernels/quantized_bytes.h.
//
// A panel holds kQuantizedCols columns, what is past the last one being zero. Its groups of k's follow each other, the
// last one shorter. A group has the scales of all columns, their minimums if there are any, and words of 32 bits, side
// by side for the columns: each word holds the next 4 codes of its column in 8 bits, or the next 8 in 4 bits. Of these
// the first four are the low halves of the word's bytes, and the others the high ones. The layout is the same for all
// instruction sets.
//
// Scales in two levels are a float32 for each kScaleBlock k's of a column, times an int8 for each group. The panel
// begins with the floats: of each block those of all columns' scales, then those of their minimums. The groups have
// the factors in the scales' place.
#pragma once

#include "kernels/products.h"

namespace fusionkit_cpu {

constexpr int64_t kQuantizedCols = 64;
constexpr int64_t kScaleBlock = 256;  // k's, as in GGUF's Q4_K and Q6_K

// value = code * scale + minimum: signed codes without minimums, codes from 0 on with them.
struct QuantizedFormat {
  int bits;  // 8 or 4
  bool has_minimums;
  DType scale_dtype;          // float16 or float32; the minimums' too
  int64_t depth, group_size;  // group_size is kShortRun, a multiple of kRun, or at least depth
  bool has_levels;            // float32 scales are in two levels; group_size divides kScaleBlock
  bool rounds_x;              // to int8
};

static inline int64_t codes_per_word(const QuantizedFormat& format) { return 32 / format.bits; }

static inline int64_t scale_bytes(const QuantizedFormat& format) {
  const int64_t size = format.has_levels ? 1 : element_size(format.scale_dtype);
  return kQuantizedCols * size * (format.has_minimums ? 2 : 1);
}

// The floats of a block, if scales have two levels.
static inline int64_t block_bytes(const QuantizedFormat& format) {
  return kQuantizedCols * int64_t{sizeof(float)} * (format.has_minimums ? 2 : 1);
}

// Where a panel's groups begin.
static inline int64_t groups_at(const QuantizedFormat& format) {
  return format.has_levels ? (format.depth + kScaleBlock - 1) / kScaleBlock * block_bytes(format) : 0;
}

// Of a group of `depth` k's.
static inline int64_t group_bytes(const QuantizedFormat& format, int64_t depth) {
  const int64_t words = (depth + codes_per_word(format) - 1) / codes_per_word(format);
  return scale_bytes(format) + words * kQuantizedCols * int64_t{sizeof(uint32_t)};
}

static inline int64_t panel_bytes(const QuantizedFormat& format) {
  const int64_t groups = format.depth / format.group_size, rest = format.depth % format.group_size;
  const int64_t whole = groups_at(format) + groups * group_bytes(format, format.group_size);
  return whole + (rest > 0 ? group_bytes(format, rest) : 0);
}

// What a panel is written from: codes [depth, out_features], or [depth / 2, out_features] where a byte holds two, the
// first one in its low half; scales and minimums [groups, out_features].
struct QuantizedSource {
  const uint8_t* codes;
  int64_t row_stride, col_stride;
  int codes_per_byte;              // 2: of 4 bits
  const float *scales, *minimums;  // minimums: null if there are none
};

static inline int64_t quantized_panels(int64_t cols) { return (cols + kQuantizedCols - 1) / kQuantizedCols; }

// Rows of x are multiplied in tiles of 8, 4, 2 and 1, as many of the larger ones as there are. What a tile's rows have
// of a run, or of a few k's, lies side by side.
constexpr int64_t kTileRows = 8;

struct RowsOfTile {
  int64_t first, count;
};

// The tile of a row, where there are `rows`.
static inline RowsOfTile tile_of(int64_t row, int64_t rows) {
  int64_t first = 0, count = kTileRows;
  for (; row >= first + (rows - first) / count * count; count /= 2) first += (rows - first) / count * count;
  return {row - (row - first) % count, count};
}

// Rows of x as integers: x = row_scale * (scale 0 * digit 0 + scale 1 * digit 1), where a run is kRun k's of a row, or
// kShortRun if groups are as short. Digits have 15 bits and a sign, and scale 0 is 2^15 of scale 1. A run leaves digit
// 1 out if digit 0 holds x, or bfloat16 x but for 2^-16 of the run's norm. Digits are in the order in which a word's
// pairs are multiplied: of each four k's the first, the third, the second and the fourth. Of x that is rounded to int8
// digit 0 is the code.
constexpr int64_t kShortRun = 16, kRun = 32;

struct Digits {
  int64_t rows, depth;  // depth is a multiple of kRun, what is past x's being zero
  int64_t run, num_runs;
  bool rounds_x;
  int16_t* digits;      // [2], tile by tile [depth / 2, rows of the tile, 2]; digit 1 is zeros where it is left out
  int32_t* digit_sums;  // [2], tile by tile [num_runs, rows of the tile]
  float* digit_scales;  // as digit_sums
  float* run_sums;      // tile by tile: the sum of both digits times their scales
  uint8_t* has_low;     // tile by tile: whether there is digit 1
  float* row_scales;    // [rows]: powers of two; NaN: x is not finite, and the row's digits hold nothing
};

static inline int64_t run_of(const QuantizedFormat& format) {
  return format.group_size == kShortRun && format.group_size < format.depth ? kShortRun : kRun;
}

// Rows whose sums a panel's block of k's is multiplied for.
constexpr int64_t kDigitRows = 512;

}  // namespace fusionkit_cpu

FUSIONKIT_KERNELS(quantized_pack,
                  // Whether two levels hold each scale and minimum of the panel's columns as it is.
                  bool panel_has_levels(const QuantizedSource& source, const QuantizedFormat& format,
                                        int64_t out_features, int64_t col);
                  // The panel of the columns from `col` on. The format holds each scale and minimum as it is.
                  void pack_quantized_panel(const QuantizedSource& source, const QuantizedFormat& format,
                                            int64_t out_features, int64_t col, void* panel);)

FUSIONKIT_KERNELS(quantized_digits,
                  // Rows [begin, end) of x, whose col_stride is 1, at their place in `digits`.
                  void make_digits(const Matrix& x, int64_t begin, int64_t end, const Digits& digits);)

FUSIONKIT_KERNELS(
    quantized_product,
    // c = x W + bias for the columns of one panel: c has as many, or fewer in the last panel. c.col_stride
    // is 1; bias may be null. `sums` holds kQuantizedCols floats a row. A row's sum over k has one order.
    void multiply_quantized(const Digits& x, const QuantizedFormat& format, const void* panel, const Matrix& c,
                            const float* bias, float* sums);)

FUSIONKIT_KERNELS(quantized_values,
                  // A panel's values in own_panels(float32, depth), one after another.
                  void dequantize_panel(const QuantizedFormat& format, const void* panel, float* values);)
