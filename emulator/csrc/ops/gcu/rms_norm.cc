// rms_norm_gcu(x, weight; epsilon) -> out, and fused_add_rms_norm_op(x, residual, weight; epsilon) -> out,
// residual_out, which writes its results into x and residual. Forward only.
#include "contract/rms_norm.h"

#include "ops/limits.h"
#include "ops/operand.h"
#include "ops/vendor.h"

namespace fusionkit_emulator::ops {
namespace {

void check(const Limits& limits, const Tensor& x, const Tensor& weight) {
  limits.tensor("x", x);
  limits.tensor("weight", weight);
  limits.dtype("x", x, {DataType::FLOAT32, DataType::FLOAT16, DataType::BFLOAT16});
  limits.same_dtype("weight", weight, "x", x);
  const Shape shape = x.shape();
  limits.require(!shape.empty(), "x", "[..., hidden_size]", shown(shape));
  limits.shape("weight", weight, {shape.back()}, "[hidden_size]");
}

void normalise(const Operand& x, const Operand& weight, float epsilon, const Operand& y) {
  std::vector<float> values(y.size);
  const int64_t rows = weight.size == 0 ? 0 : x.size / weight.size;
  rms_norm(x.floats().data(), weight.floats().data(), rows, weight.size, epsilon, values.data(), nullptr);
  y.store(values);
}

Tensors norm(const Tensor& x, const Tensor& weight, float epsilon) {
  check(Limits("rms_norm_gcu"), x, weight);
  const Tensor made = result(x, x.shape(), x.dtype());
  launch("rms_norm_gcu", x,
         [=, x = Operand(x), weight = Operand(weight), y = Operand(made)] { normalise(x, weight, epsilon, y); });
  return {made};
}

// The sum is rounded to the inputs' dtype before the norm.
Tensors add_norm(Tensor& x, Tensor& residual, const Tensor& weight, float epsilon) {
  const Limits limits("fused_add_rms_norm_op");
  check(limits, x, weight);
  limits.tensor("residual", residual);
  limits.same_dtype("residual", residual, "x", x);
  limits.shape("residual", residual, x.shape(), "as x");
  launch("fused_add_rms_norm_op", x, [=, x = Operand(x), residual = Operand(residual), weight = Operand(weight)] {
    std::vector<float> sum = x.floats();
    const std::vector<float> other = residual.floats();
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += other[i];
    residual.store(sum);
    normalise(residual, weight, epsilon, x);
  });
  return {};  // Paddle gives the inputs back under the outputs' names
}

std::vector<Shape> norm_shapes(const Shape& x, const Shape&, float) { return {x}; }
std::vector<DataType> norm_dtypes(const DataType& x, const DataType&) { return {x}; }
std::vector<Shape> add_shapes(const Shape& x, const Shape& residual, const Shape&, float) { return {x, residual}; }
std::vector<DataType> add_dtypes(const DataType& x, const DataType& residual, const DataType&) { return {x, residual}; }

const Vendor registered("gcu", [] {
  paddle::OpMetaInfoBuilder("rms_norm_gcu", 0)
      .Inputs({"x", "weight"})
      .Outputs({"out"})
      .Attrs({"epsilon: float"})
      .SetKernelFn(PD_KERNEL(norm))
      .SetInferShapeFn(PD_INFER_SHAPE(norm_shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(norm_dtypes));
  paddle::OpMetaInfoBuilder("fused_add_rms_norm_op", 0)
      .Inputs({"x", "residual", "weight"})
      .Outputs({"out", "residual_out"})
      .SetInplaceMap({{"x", "out"}, {"residual", "residual_out"}})
      .Attrs({"epsilon: float"})
      .SetKernelFn(PD_KERNEL(add_norm))
      .SetInferShapeFn(PD_INFER_SHAPE(add_shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(add_dtypes));
});

}  // namespace
}  // namespace fusionkit_emulator::ops
