#pragma once

#include <cstddef>

#include "kernels/table.h"

// A weight laid out for the product once, for inference. Immutable and shareable between threads. The bytes are one
// block, so that a framework can hold them as a uint8 tensor: they are valid for the library, instruction set and
// version that made them, which the block's header names and every use checks.
// batch_invariant: a row of y has the same bits whatever the other rows are, and how many.
// linear_packed also takes a weight of 8 or 4 bits, as backends/cpu/quantized_panels.py lays it out: the same bytes for
// all instruction sets, multiplied in float32 by x of any dtype, and always batch invariant.
FUSIONKIT_ENTRY_POINTS(size_t packed_weight_size(const Tensor& weight, DType dtype, bool batch_invariant = false);
                       // `packed` is 64-byte aligned.
                       void pack_weight(const Tensor& weight, DType dtype, bool batch_invariant, void* packed);
                       void linear_packed(const Tensor& x, const void* packed, size_t packed_size, int64_t in_features,
                                          int64_t out_features, const Tensor& bias, const Tensor& y,
                                          bool batch_invariant = false);
                       // Up to so many rows of x meet a weight of 8 or 4 bits in registers; more rows, its floats.
                       int64_t most_rows_in_registers();)
