// fusionkit_fused_linear: x, weight -> y; fusionkit_fused_linear_bias: x, weight, bias -> y.
// Two ops, because Paddle 3.3's static executor cannot leave out the gradient of an optional input that is None.
// x_grad, weight_grad: whether a gradient is wanted; a frozen weight costs no product.
// batch_invariant: a row of y does not depend on the others.
#include "fused_linear.h"

#include "host_view.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_fused_linear";

paddle::Tensor product(const paddle::Tensor& x, const paddle::Tensor& weight, const paddle::Tensor* bias,
                       bool batch_invariant) {
  const HostView view(kOp);
  const auto x_view = view("x", x);
  const auto weight_view = view("weight", weight);
  const auto bias_view = bias ? view("bias", *bias) : fusionkit_cpu::Tensor();
  paddle::Tensor y = empty(product_shape(x.shape(), weight.shape()), x.dtype());
  fusionkit_cpu::linear(x_view, weight_view, bias_view, view("y", y), batch_invariant);
  return y;
}

Tensors gradients(const paddle::Tensor& x, const paddle::Tensor& weight, const paddle::Tensor* bias,
                  const paddle::Tensor& dy, bool x_grad, bool weight_grad) {
  const HostView view(kOp);
  Tensors result = {x_grad ? empty_like(x) : no_gradient(x), weight_grad ? empty_like(weight) : no_gradient(weight)};
  if (bias) result.push_back(empty_like(*bias));
  fusionkit_cpu::linear_grad(view("x", x), view("weight", weight), view("the gradient of y", dy),
                             x_grad ? view("dx", result[0]) : fusionkit_cpu::Tensor(),
                             weight_grad ? view("dweight", result[1]) : fusionkit_cpu::Tensor(),
                             bias ? view("dbias", result[2]) : fusionkit_cpu::Tensor());
  return result;
}

Tensors forward(const paddle::Tensor& x, const paddle::Tensor& weight, bool, bool, bool batch_invariant) {
  return {product(x, weight, nullptr, batch_invariant)};
}

Tensors forward_bias(const paddle::Tensor& x, const paddle::Tensor& weight, const paddle::Tensor& bias, bool, bool,
                     bool batch_invariant) {
  return {product(x, weight, &bias, batch_invariant)};
}

Tensors backward(const paddle::Tensor& x, const paddle::Tensor& weight, const paddle::Tensor& dy, bool x_grad,
                 bool weight_grad) {
  return gradients(x, weight, nullptr, dy, x_grad, weight_grad);
}

Tensors backward_bias(const paddle::Tensor& x, const paddle::Tensor& weight, const paddle::Tensor& bias,
                      const paddle::Tensor& dy, bool x_grad, bool weight_grad) {
  return gradients(x, weight, &bias, dy, x_grad, weight_grad);
}

std::vector<Shape> infer_shape(const Shape& x, const Shape& weight, bool, bool, bool) {
  return {product_shape(x, weight)};
}

std::vector<Shape> infer_shape_bias(const Shape& x, const Shape& weight, const Shape&, bool, bool, bool) {
  return {product_shape(x, weight)};
}

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& x, const paddle::DataType&) { return {x}; }

std::vector<paddle::DataType> infer_dtype_bias(const paddle::DataType& x, const paddle::DataType&,
                                               const paddle::DataType&) {
  return {x};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_fused_linear)
    .Inputs({"x", "weight"})
    .Outputs({"y"})
    .Attrs({"x_grad: bool", "weight_grad: bool", "batch_invariant: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));

PD_BUILD_GRAD_OP(fusionkit_fused_linear)
    .Inputs({"x", "weight", paddle::Grad("y")})
    .Outputs({paddle::Grad("x"), paddle::Grad("weight")})
    .Attrs({"x_grad: bool", "weight_grad: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::backward));

FUSIONKIT_DIFFERENTIABLE_ONCE(fusionkit_fused_linear, "x", "y");

PD_BUILD_OP(fusionkit_fused_linear_bias)
    .Inputs({"x", "weight", "bias"})
    .Outputs({"y"})
    .Attrs({"x_grad: bool", "weight_grad: bool", "batch_invariant: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward_bias))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape_bias))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype_bias));

PD_BUILD_GRAD_OP(fusionkit_fused_linear_bias)
    .Inputs({"x", "weight", "bias", paddle::Grad("y")})
    .Outputs({paddle::Grad("x"), paddle::Grad("weight"), paddle::Grad("bias")})
    .Attrs({"x_grad: bool", "weight_grad: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::backward_bias));

FUSIONKIT_DIFFERENTIABLE_ONCE(fusionkit_fused_linear_bias, "x", "y");
