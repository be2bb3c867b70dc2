// fusionkit_fusion_add_rms_norm: x, residual, weight -> y, residual_out, rstd.
#include "fusion_add_rms_norm.h"

#include "host_view.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_fusion_add_rms_norm";

Tensors forward(const paddle::Tensor& x, const paddle::Tensor& residual, const paddle::Tensor& weight, float epsilon) {
  const HostView view(kOp);
  const auto x_view = view("x", x);
  const auto residual_view = view("residual", residual);
  const auto weight_view = view("weight", weight);
  paddle::Tensor y = empty_like(x);
  paddle::Tensor residual_out = empty_like(residual);
  paddle::Tensor rstd = empty(leading_axes(x.shape()), paddle::DataType::FLOAT32);
  fusionkit_cpu::add_rms_norm(x_view, residual_view, weight_view, epsilon, view("y", y),
                              view("residual_out", residual_out), view.merged("rstd", rstd, 1));
  return {y, residual_out, rstd};
}

// y is here for its shape and dtype only; the op that follows keeps it alive anyway.
Tensors backward(const paddle::Tensor& weight, const paddle::Tensor& y, const paddle::Tensor& residual_out,
                 const paddle::Tensor& rstd, const paddle::Tensor& y_gradient,
                 const paddle::Tensor& residual_out_gradient) {
  const HostView view(kOp);
  const paddle::Tensor dy = or_zeros(y_gradient, y);
  fusionkit_cpu::Tensor dresidual_out;
  if (residual_out_gradient.initialized()) {
    dresidual_out = view("the gradient of residual_out", residual_out_gradient);
  }
  paddle::Tensor dx = empty_like(y);
  paddle::Tensor dresidual = empty_like(residual_out);
  paddle::Tensor dweight = empty_like(weight);
  fusionkit_cpu::add_rms_norm_grad(view("residual_out", residual_out), view("weight", weight),
                                   view.merged("rstd", rstd, 1), view("the gradient of y", dy), dresidual_out,
                                   view("dx", dx), view("dresidual", dresidual), view("dweight", dweight));
  return {dx, dresidual, dweight};
}

std::vector<Shape> infer_shape(const Shape& x, const Shape& residual, const Shape&, float) {
  return {x, residual, leading_axes(x)};
}

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& x, const paddle::DataType& residual,
                                          const paddle::DataType&) {
  return {x, residual, paddle::DataType::FLOAT32};
}

// Paddle infers the gradients by itself only when the backward takes the forward's inputs.
std::vector<Shape> infer_grad_shape(const Shape& weight, const Shape& y, const Shape& residual_out, const Shape&,
                                    const Shape&, const Shape&) {
  return {y, residual_out, weight};
}

std::vector<paddle::DataType> infer_grad_dtype(const paddle::DataType& weight, const paddle::DataType& y,
                                               const paddle::DataType& residual_out, const paddle::DataType&,
                                               const paddle::DataType&, const paddle::DataType&) {
  return {y, residual_out, weight};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_fusion_add_rms_norm)
    .Inputs({"x", "residual", "weight"})
    .Outputs({"y", "residual_out", "rstd"})
    .Attrs({"epsilon: float"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));

PD_BUILD_GRAD_OP(fusionkit_fusion_add_rms_norm)
    .Inputs({"weight", "y", "residual_out", "rstd", paddle::Grad("y"), paddle::Grad("residual_out")})
    .Outputs({paddle::Grad("x"), paddle::Grad("residual"), paddle::Grad("weight")})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::backward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_grad_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_grad_dtype));

FUSIONKIT_DIFFERENTIABLE_ONCE(fusionkit_fusion_add_rms_norm, "x", "y");
