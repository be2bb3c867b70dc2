// fusionkit_fusion_rms_norm: x, weight -> y, rstd. rstd is float32 and has the leading axes of x.
#include "fusion_rms_norm.h"

#include "host_view.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_fusion_rms_norm";

Tensors forward(const paddle::Tensor& x, const paddle::Tensor& weight, float epsilon) {
  const HostView view(kOp);
  const auto x_view = view("x", x);
  const auto weight_view = view("weight", weight);
  paddle::Tensor y = empty_like(x);
  paddle::Tensor rstd = empty(leading_axes(x.shape()), paddle::DataType::FLOAT32);
  fusionkit_cpu::rms_norm(x_view, weight_view, epsilon, view("y", y), view.merged("rstd", rstd, 1));
  return {y, rstd};
}

Tensors backward(const paddle::Tensor& x, const paddle::Tensor& weight, const paddle::Tensor& rstd,
                 const paddle::Tensor& dy) {
  const HostView view(kOp);
  paddle::Tensor dx = empty_like(x);
  paddle::Tensor dweight = empty_like(weight);
  fusionkit_cpu::rms_norm_grad(view("x", x), view("weight", weight), view.merged("rstd", rstd, 1),
                               view("the gradient of y", dy), view("dx", dx), view("dweight", dweight));
  return {dx, dweight};
}

std::vector<Shape> infer_shape(const Shape& x, const Shape&, float) { return {x, leading_axes(x)}; }

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& x, const paddle::DataType&) {
  return {x, paddle::DataType::FLOAT32};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_fusion_rms_norm)
    .Inputs({"x", "weight"})
    .Outputs({"y", "rstd"})
    .Attrs({"epsilon: float"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));

PD_BUILD_GRAD_OP(fusionkit_fusion_rms_norm)
    .Inputs({"x", "weight", "rstd", paddle::Grad("y")})
    .Outputs({paddle::Grad("x"), paddle::Grad("weight")})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::backward));

FUSIONKIT_DIFFERENTIABLE_ONCE(fusionkit_fusion_rms_norm, "x", "y");
