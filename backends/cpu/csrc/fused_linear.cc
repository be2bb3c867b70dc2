#include "fused_linear.h"

#include "bias_gradient.h"
#include "check.h"
#include "linear_operands.h"
#include "product.h"

namespace fusionkit_cpu {
namespace {

void require_weight(const char* op, const Tensor& x, const Tensor& weight) {
  require_num_dims(op, "weight", weight, 2);
  require_input(op, "weight", weight, {x.dtype, DType::kFloat32}, {last_size(x), weight.shape[1]});
}

}  // namespace

void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y, bool batch_invariant) {
  constexpr const char* kOp = "fused_linear";
  require_activations(kOp, "x", x);
  require_weight(kOp, x, weight);
  const int64_t out_features = weight.shape[1];
  require_bias(kOp, "bias", bias, x, out_features);
  require_leading(kOp, "y", y, x, out_features);
  require(is_contiguous(y), kOp, "y", "contiguous", y);
  const RowMatrix rows(x);
  const FloatBias float_bias(bias);
  product(rows.matrix(), matrix_of(weight), x.dtype, contiguous(y.data, y.dtype, rows.matrix().rows, out_features),
          {float_bias.data(), false, batch_invariant});
}

void linear_grad(const Tensor& x, const Tensor& weight, const Tensor& dy, const Tensor& dx, const Tensor& dweight,
                 const Tensor& dbias) {
  constexpr const char* kOp = "fused_linear_grad";
  require_activations(kOp, "x", x);
  require_weight(kOp, x, weight);
  const int64_t in_features = weight.shape[0], out_features = weight.shape[1];
  require_leading(kOp, "dy", dy, x, out_features);
  if (dx) require_output_like(kOp, "dx", dx, "x", x);
  if (dweight) require_output_like(kOp, "dweight", dweight, "weight", weight);
  if (dbias) {
    require_bias(kOp, "dbias", dbias, x, out_features);
    require(is_contiguous(dbias), kOp, "dbias", "contiguous", dbias);
  }
  const RowMatrix gradient(dy);
  if (dx)
    product(gradient.matrix(), transposed(matrix_of(weight)), x.dtype,
            contiguous(dx.data, dx.dtype, gradient.matrix().rows, in_features));
  if (dweight) {
    const RowMatrix rows(x);
    product(transposed(rows.matrix()), gradient.matrix(), x.dtype,
            contiguous(dweight.data, dweight.dtype, in_features, out_features));
  }
  if (dbias) sum_rows(gradient.matrix(), dbias);
}

}  // namespace fusionkit_cpu
