// fusionkit_fused_linear: x, weight, bias? -> y.
// x_grad, weight_grad: whether a gradient is wanted; a frozen weight costs no product.
#include "host_view.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_fused_linear";

Shape output_shape(Shape x, const Shape& weight) {
  if (!x.empty() && !weight.empty()) x.back() = weight.back();
  return x;
}

Tensors forward(const paddle::Tensor& x, const paddle::Tensor& weight, const OptionalTensor& bias, bool, bool) {
  const HostView view(kOp);
  const auto x_view = view("x", x);
  const auto weight_view = view("weight", weight);
  const auto bias_view = view("bias", bias);
  paddle::Tensor y = empty(output_shape(x.shape(), weight.shape()), x.dtype());
  fusionkit_cpu::linear(x_view, weight_view, bias_view, view("y", y));
  return {y};
}

Tensors backward(const paddle::Tensor& x, const paddle::Tensor& weight, const OptionalTensor& bias,
                 const paddle::Tensor& dy, bool x_grad, bool weight_grad) {
  const HostView view(kOp);
  paddle::Tensor dx = x_grad ? empty_like(x) : no_gradient(x);
  paddle::Tensor dweight = weight_grad ? empty_like(weight) : no_gradient(weight);
  paddle::Tensor dbias = bias ? empty_like(*bias) : no_gradient(x);
  fusionkit_cpu::linear_grad(view("x", x), view("weight", weight), view("the gradient of y", dy),
                             x_grad ? view("dx", dx) : fusionkit_cpu::Tensor(),
                             weight_grad ? view("dweight", dweight) : fusionkit_cpu::Tensor(),
                             bias ? view("dbias", dbias) : fusionkit_cpu::Tensor());
  return {dx, dweight, dbias};
}

std::vector<Shape> infer_shape(const Shape& x, const Shape& weight, const OptionalShape&, bool, bool) {
  return {output_shape(x, weight)};
}

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& x, const paddle::DataType&, const OptionalDType&) {
  return {x};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_fused_linear)
    .Inputs({"x", "weight", paddle::Optional("bias")})
    .Outputs({"y"})
    .Attrs({"x_grad: bool", "weight_grad: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));

PD_BUILD_GRAD_OP(fusionkit_fused_linear)
    .Inputs({"x", "weight", paddle::Optional("bias"), paddle::Grad("y")})
    .Outputs({paddle::Grad("x"), paddle::Grad("weight"), paddle::Grad(paddle::Optional("bias"))})
    .Attrs({"x_grad: bool", "weight_grad: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::backward));
