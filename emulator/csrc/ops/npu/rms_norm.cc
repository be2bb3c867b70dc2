// rms_norm_npu(x, gamma; epsilon) -> y in gamma's dtype, rstd float32; the gradient of gamma is float32.
#include "contract/rms_norm.h"

#include "ops/limits.h"
#include "ops/operand.h"
#include "ops/vendor.h"

namespace fusionkit_emulator::ops {
namespace {

constexpr char kOp[] = "rms_norm_npu";

// x's shape with gamma's axes kept as 1.
Shape statistics_shape(Shape x, size_t gamma_axes) {
  std::fill(x.end() - std::min(gamma_axes, x.size()), x.end(), 1);
  return x;
}

void check(const Tensor& x, const Tensor& gamma) {
  const Limits limits(kOp);
  limits.tensor("x", x);
  limits.tensor("gamma", gamma);
  limits.dtype("x", x, {DataType::FLOAT32, DataType::FLOAT16, DataType::BFLOAT16});
  limits.dtype("gamma", gamma, {DataType::FLOAT32, DataType::FLOAT16, DataType::BFLOAT16});
  const Shape shape = x.shape(), axes = gamma.shape();
  const bool last = axes.size() <= shape.size() && std::equal(axes.rbegin(), axes.rend(), shape.rbegin());
  limits.require(last && !axes.empty() && gamma.numel() > 0, "gamma", "of the last axes of x " + shown(shape),
                 shown(axes));
}

Tensors forward(const Tensor& x, const Tensor& gamma, float epsilon) {
  check(x, gamma);
  const Shape statistics = statistics_shape(x.shape(), gamma.shape().size());
  const Tensors made{result(x, x.shape(), gamma.dtype()), result(x, statistics, DataType::FLOAT32)};
  launch(kOp, x, [=, x = Operand(x), gamma = Operand(gamma), y = Operand(made[0]), rstd = Operand(made[1])] {
    std::vector<float> y_values(y.size), rstd_values(rstd.size);
    rms_norm(x.floats().data(), gamma.floats().data(), rstd.size, gamma.size, epsilon, y_values.data(),
             rstd_values.data());
    y.store(y_values);
    rstd.store(rstd_values);
  });
  return made;
}

Tensors backward(const Tensor& x, const Tensor& gamma, const Tensor& rstd, const Tensor& dy, float) {
  check(x, gamma);
  Limits(kOp).tensor("the gradient of y", dy);
  const Tensors made{result(x, x.shape(), x.dtype()), result(x, gamma.shape(), DataType::FLOAT32)};
  launch(kOp, x,
         [x = Operand(x), gamma = Operand(gamma), rstd = Operand(rstd), dy = Operand(dy), dx = Operand(made[0]),
          dgamma = Operand(made[1])] {
           std::vector<float> dx_values(dx.size), dgamma_values(dgamma.size);
           rms_norm_grad(x.floats().data(), gamma.floats().data(), rstd.floats().data(), dy.floats().data(), rstd.size,
                         gamma.size, dx_values.data(), dgamma_values.data());
           dx.store(dx_values);
           dgamma.store(dgamma_values);
         });
  return made;
}

std::vector<Shape> shapes(const Shape& x, const Shape& gamma, float) { return {x, statistics_shape(x, gamma.size())}; }
std::vector<DataType> dtypes(const DataType&, const DataType& gamma) { return {gamma, DataType::FLOAT32}; }
std::vector<Shape> gradient_shapes(const Shape& x, const Shape& gamma, const Shape&, const Shape&, float) {
  return {x, gamma};
}
std::vector<DataType> gradient_dtypes(const DataType& x, const DataType&, const DataType&, const DataType&) {
  return {x, DataType::FLOAT32};
}

const Vendor registered("npu", [] {
  paddle::OpMetaInfoBuilder(kOp, 0)
      .Inputs({"x", "gamma"})
      .Outputs({"y", "rstd"})
      .Attrs({"epsilon: float"})
      .SetKernelFn(PD_KERNEL(forward))
      .SetInferShapeFn(PD_INFER_SHAPE(shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(dtypes));
  paddle::OpMetaInfoBuilder(kOp, 1)
      .Inputs({"x", "gamma", "rstd", paddle::Grad("y")})
      .Outputs({paddle::Grad("x"), paddle::Grad("gamma")})
      .Attrs({"epsilon: float"})
      .SetKernelFn(PD_KERNEL(backward))
      .SetInferShapeFn(PD_INFER_SHAPE(gradient_shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(gradient_dtypes));
});

}  // namespace
}  // namespace fusionkit_emulator::ops
