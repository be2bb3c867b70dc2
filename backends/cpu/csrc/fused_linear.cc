#include "fused_linear.h"

#include <algorithm>

#include "check.h"
#include "kernels/products.h"
#include "linear_operands.h"
#include "parallel.h"
#include "product.h"

namespace fusionkit_cpu {
namespace {

void require_weight(const char* op, const Tensor& x, const Tensor& weight) {
  require_num_dims(op, "weight", weight, 2);
  require_input(op, "weight", weight, {x.dtype, DType::kFloat32}, {last_size(x), weight.shape[1]});
}

void sum_rows(const Matrix& dy, const Tensor& dbias) {
  constexpr int64_t kStrip = 64;  // columns; every strip is summed in row order, whichever thread takes it
  const Buffer sums(dy.cols * sizeof(float));
  parallel_for((dy.cols + kStrip - 1) / kStrip, 1, [&](int64_t begin, int64_t end, int) {
    const Matrix strip = slice_cols(dy, begin * kStrip, std::min(end * kStrip, dy.cols));
    FUSIONKIT_DISPATCH(sum_columns, strip, sums.as<float>() + begin * kStrip);
  });
  convert(contiguous(sums.as<void>(), DType::kFloat32, 1, dy.cols), DType::kFloat32, nullptr,
          contiguous(dbias.data, dbias.dtype, 1, dy.cols));
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
