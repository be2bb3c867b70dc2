#include "fused_linear_packed.h"

#include <string>

#include "check.h"
#include "linear_operands.h"
#include "packed_weight.h"
#include "quantized_rows.h"
#include "quantized_weight.h"

namespace fusionkit_cpu {

size_t packed_weight_size(const Tensor& weight, DType dtype, bool batch_invariant) {
  require_num_dims("packed_weight_size", "weight", weight, 2);
  require_floating("packed_weight_size", "weight", weight);
  if (!is_floating(dtype)) fail("packed_weight_size", "dtype", "float32, bfloat16 or float16", dtype_name(dtype));
  return packed_size(matrix_of(weight), dtype, batch_invariant);
}

void pack_weight(const Tensor& weight, DType dtype, bool batch_invariant, void* packed) {
  constexpr const char* kOp = "pack_weight";
  require_num_dims(kOp, "weight", weight, 2);
  require_floating(kOp, "weight", weight);
  if (!is_floating(dtype)) fail(kOp, "dtype", "float32, bfloat16 or float16", dtype_name(dtype));
  if (packed == nullptr) fail(kOp, "packed", "packed_weight_size() bytes", "null");
  pack(matrix_of(weight), dtype, batch_invariant, packed);
}

void linear_packed(const Tensor& x, const void* packed, size_t packed_size, int64_t in_features, int64_t out_features,
                   const Tensor& bias, const Tensor& y, bool batch_invariant) {
  constexpr const char* kOp = "fused_linear_packed";
  require_activations(kOp, "x", x);
  if (last_size(x) != in_features)
    fail(kOp, "x", "of " + std::to_string(in_features) + " features on its last axis", describe(x));
  const bool quantized = is_quantized(packed, packed_size);
  if (quantized)
    require_quantized(kOp, packed, packed_size, in_features, out_features);
  else
    require_packed(kOp, packed, packed_size, x.dtype, in_features, out_features, batch_invariant);
  require_bias(kOp, "bias", bias, x, out_features);
  require_leading(kOp, "y", y, x, out_features);
  require(is_contiguous(y), kOp, "y", "contiguous", y);
  const RowMatrix rows(x);
  const FloatBias float_bias(bias);
  const Matrix c = contiguous(y.data, y.dtype, rows.matrix().rows, out_features);
  if (quantized) return product_quantized(rows.matrix(), packed, c, float_bias.data());
  product_packed(rows.matrix(), packed, c, float_bias.data(), batch_invariant);
}

}  // namespace fusionkit_cpu
