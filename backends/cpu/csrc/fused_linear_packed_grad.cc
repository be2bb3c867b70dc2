#include "fused_linear_packed_grad.h"

#include <string>

#include "bias_gradient.h"
#include "check.h"
#include "linear_operands.h"
#include "quantized_gradient.h"
#include "quantized_weight.h"

namespace fusionkit_cpu {

void linear_packed_grad(const void* packed, size_t packed_size, int64_t in_features, int64_t out_features,
                        const Tensor& dy, const Tensor& dx, const Tensor& dbias) {
  constexpr const char* kOp = "fused_linear_packed_grad";
  if (!is_quantized(packed, packed_size)) fail(kOp, "packed", "an int8 or int4 weight from pack_weight", "another");
  require_quantized(kOp, packed, packed_size, in_features, out_features);
  require_activations(kOp, "dy", dy);
  if (last_size(dy) != out_features)
    fail(kOp, "dy", "of " + std::to_string(out_features) + " features on its last axis", describe(dy));
  const RowMatrix gradient(dy);
  if (dx) {
    require_leading(kOp, "dx", dx, dy, in_features);
    require(is_contiguous(dx), kOp, "dx", "contiguous", dx);
    gradient_quantized(gradient.matrix(), packed, contiguous(dx.data, dx.dtype, gradient.matrix().rows, in_features));
  }
  if (dbias) {
    require_bias(kOp, "dbias", dbias, dy, out_features);
    require(is_contiguous(dbias), kOp, "dbias", "contiguous", dbias);
    sum_rows(gradient.matrix(), dbias);
  }
}

}  // namespace fusionkit_cpu
