#pragma once

#include <cstddef>

#include "kernels/table.h"

// A weight laid out for the product once, for inference. Immutable and shareable between threads. The bytes are one
// block, so that a framework can hold them as a uint8 tensor: they are valid for the library, instruction set and
// version that made them, which the block's header names and every use checks.
// batch_invariant: a row of y has the same bits whatever the other rows are, and how many.
// linear_packed also takes a weight of 8 or 4 bits, laid out as kernels/quantized_product.h says: the same bytes for
// all instruction sets, for x of any dtype, and always batch invariant.
// pack_quantized writes it, from codes of [in_features, out_features], one a byte, or two of 4 bits along in_features,
// and scales and minimums of [groups, out_features]; their dtype in the pack has to hold each as it is. In two levels
// float32 scales take less: shorten_scales asks for these where they hold each as it is.
namespace fusionkit_cpu {

struct QuantizedWeight {
  const uint8_t* codes;
  int64_t row_stride, col_stride;  // of codes
  int codes_per_byte;
  const float *scales, *minimums;  // minimums: null if there are none
  int bits;                        // 8 or 4
  int64_t in_features, out_features, group_size;
  DType scale_dtype;
  bool rounds_x = false;  // to int8, before the product
  bool has_levels = false;
};

}  // namespace fusionkit_cpu

FUSIONKIT_ENTRY_POINTS(size_t packed_weight_size(const Tensor& weight, DType dtype, bool batch_invariant = false);
                       // `packed` is 64-byte aligned.
                       void pack_weight(const Tensor& weight, DType dtype, bool batch_invariant, void* packed);
                       void linear_packed(const Tensor& x, const void* packed, size_t packed_size, int64_t in_features,
                                          int64_t out_features, const Tensor& bias, const Tensor& y,
                                          bool batch_invariant = false);
                       void shorten_scales(QuantizedWeight* weight);
                       size_t quantized_size(const QuantizedWeight& weight);
                       // `packed` is 64-byte aligned.
                       void pack_quantized(const QuantizedWeight& weight, void* packed);)
