// fusionkit_fused_linear_quantized: x, packed (a weight of 8 or 4 bits) -> y; fusionkit_fused_linear_quantized_bias:
// x, packed, bias -> y. Two ops, as of fusionkit_fused_linear. The pack is frozen. The backward pass reads it again,
// and keeps no x.
#include "fused_linear_packed.h"
#include "fused_linear_packed_grad.h"
#include "host_view.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_fused_linear_quantized";

Tensors product(const paddle::Tensor& x, const paddle::Tensor& packed, const paddle::Tensor* bias, int64_t in_features,
                int64_t out_features) {
  const HostView view(kOp);
  const auto x_view = view("x", x);
  const void* bytes = view.bytes("packed", packed);
  paddle::Tensor y = empty(with_last_axis(x.shape(), out_features), x.dtype());
  fusionkit_cpu::linear_packed(x_view, bytes, static_cast<size_t>(packed.numel()), in_features, out_features,
                               bias ? view("bias", *bias) : fusionkit_cpu::Tensor(), view("y", y));
  return {y};
}

Tensors gradients(const paddle::Tensor& packed, const paddle::Tensor* bias, const paddle::Tensor& dy,
                  int64_t in_features, int64_t out_features, bool x_grad, bool bias_grad) {
  const HostView view(kOp);
  Tensors result = {x_grad ? empty(with_last_axis(dy.shape(), in_features), dy.dtype()) : no_gradient(dy)};
  if (bias) result.push_back(bias_grad ? empty_like(*bias) : no_gradient(*bias));
  fusionkit_cpu::linear_packed_grad(view.bytes("packed", packed), static_cast<size_t>(packed.numel()), in_features,
                                    out_features, view("the gradient of y", dy),
                                    x_grad ? view("dx", result[0]) : fusionkit_cpu::Tensor(),
                                    bias_grad ? view("dbias", result[1]) : fusionkit_cpu::Tensor());
  return result;
}

Tensors forward(const paddle::Tensor& x, const paddle::Tensor& packed, int64_t in_features, int64_t out_features) {
  return product(x, packed, nullptr, in_features, out_features);
}

Tensors forward_bias(const paddle::Tensor& x, const paddle::Tensor& packed, const paddle::Tensor& bias,
                     int64_t in_features, int64_t out_features, bool, bool) {
  return product(x, packed, &bias, in_features, out_features);
}

Tensors backward(const paddle::Tensor& packed, const paddle::Tensor& dy, int64_t in_features, int64_t out_features) {
  return gradients(packed, nullptr, dy, in_features, out_features, true, false);
}

Tensors backward_bias(const paddle::Tensor& packed, const paddle::Tensor& bias, const paddle::Tensor& dy,
                      int64_t in_features, int64_t out_features, bool x_grad, bool bias_grad) {
  return gradients(packed, &bias, dy, in_features, out_features, x_grad, bias_grad);
}

std::vector<Shape> infer_shape(const Shape& x, const Shape&, int64_t, int64_t out_features) {
  return {with_last_axis(x, out_features)};
}

std::vector<Shape> infer_shape_bias(const Shape& x, const Shape&, const Shape&, int64_t, int64_t out_features, bool,
                                    bool) {
  return {with_last_axis(x, out_features)};
}

std::vector<Shape> infer_grad_shape(const Shape&, const Shape& dy, int64_t in_features, int64_t) {
  return {with_last_axis(dy, in_features)};
}

std::vector<Shape> infer_grad_shape_bias(const Shape&, const Shape& bias, const Shape& dy, int64_t in_features, int64_t,
                                         bool, bool) {
  return {with_last_axis(dy, in_features), bias};
}

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& x, const paddle::DataType&) { return {x}; }

std::vector<paddle::DataType> infer_dtype_bias(const paddle::DataType& x, const paddle::DataType&,
                                               const paddle::DataType&) {
  return {x};
}

std::vector<paddle::DataType> infer_grad_dtype(const paddle::DataType&, const paddle::DataType& dy) { return {dy}; }

std::vector<paddle::DataType> infer_grad_dtype_bias(const paddle::DataType&, const paddle::DataType& bias,
                                                    const paddle::DataType& dy) {
  return {dy, bias};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_fused_linear_quantized)
    .Inputs({"x", "packed"})
    .Outputs({"y"})
    .Attrs({"in_features: int64_t", "out_features: int64_t"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));

PD_BUILD_GRAD_OP(fusionkit_fused_linear_quantized)
    .Inputs({"packed", paddle::Grad("y")})
    .Outputs({paddle::Grad("x")})
    .Attrs({"in_features: int64_t", "out_features: int64_t"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::backward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_grad_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_grad_dtype));

FUSIONKIT_DIFFERENTIABLE_ONCE(fusionkit_fused_linear_quantized, "x", "y");

PD_BUILD_OP(fusionkit_fused_linear_quantized_bias)
    .Inputs({"x", "packed", "bias"})
    .Outputs({"y"})
    .Attrs({"in_features: int64_t", "out_features: int64_t", "x_grad: bool", "bias_grad: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward_bias))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape_bias))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype_bias));

PD_BUILD_GRAD_OP(fusionkit_fused_linear_quantized_bias)
    .Inputs({"packed", "bias", paddle::Grad("y")})
    .Outputs({paddle::Grad("x"), paddle::Grad("bias")})
    .Attrs({"in_features: int64_t", "out_features: int64_t", "x_grad: bool", "bias_grad: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::backward_bias))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_grad_shape_bias))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_grad_dtype_bias));

FUSIONKIT_DIFFERENTIABLE_ONCE(fusionkit_fused_linear_quantized_bias, "x", "y");
