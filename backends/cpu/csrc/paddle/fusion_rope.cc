// fusionkit_fusion_rope: q, k, cos, sin, position_ids? -> q_out, k_out. The gradient is the rotation by the negative
// angle.
#include "fusion_rope.h"

#include "host_view.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_fusion_rope";

Tensors rotate(const paddle::Tensor& q, const paddle::Tensor& k, const paddle::Tensor& cos, const paddle::Tensor& sin,
               const OptionalTensor& position_ids, bool interleaved, bool inverse) {
  const HostView view(kOp);
  const auto q_view = view("q", q);
  const auto k_view = view("k", k);
  const auto cos_view = view("cos", cos);
  const auto sin_view = view("sin", sin);
  const auto position_ids_view = view("position_ids", position_ids);
  for (const int axis : {0, 1, 3})
    if (q_view.num_dims != 4 || k_view.num_dims != 4 || q_view.shape[axis] != k_view.shape[axis])
      throw std::invalid_argument(
          "fusion_rope: k must be like q [batch_size, seq_len, num_heads, head_dim] but for its heads");
  paddle::Tensor q_out = empty_like(q);
  paddle::Tensor k_out = empty_like(k);
  fusionkit_cpu::rope(q_view, cos_view, sin_view, position_ids_view, interleaved, inverse, view("q_out", q_out));
  fusionkit_cpu::rope(k_view, cos_view, sin_view, position_ids_view, interleaved, inverse, view("k_out", k_out));
  return {q_out, k_out};
}

Tensors forward(const paddle::Tensor& q, const paddle::Tensor& k, const paddle::Tensor& cos, const paddle::Tensor& sin,
                const OptionalTensor& position_ids, bool interleaved) {
  return rotate(q, k, cos, sin, position_ids, interleaved, false);
}

// q_out and k_out are here for their shapes only; attention keeps them alive anyway.
Tensors backward(const paddle::Tensor& cos, const paddle::Tensor& sin, const OptionalTensor& position_ids,
                 const paddle::Tensor& q_out, const paddle::Tensor& k_out, const paddle::Tensor& q_gradient,
                 const paddle::Tensor& k_gradient, bool interleaved) {
  return rotate(or_zeros(q_gradient, q_out), or_zeros(k_gradient, k_out), cos, sin, position_ids, interleaved, true);
}

std::vector<Shape> infer_shape(const Shape& q, const Shape& k, const Shape&, const Shape&, const OptionalShape&, bool) {
  return {q, k};
}

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& q, const paddle::DataType& k, const paddle::DataType&,
                                          const paddle::DataType&, const OptionalDType&) {
  return {q, k};
}

// Paddle infers the gradients by itself only when the backward takes the forward's inputs.
std::vector<Shape> infer_grad_shape(const Shape&, const Shape&, const OptionalShape&, const Shape& q_out,
                                    const Shape& k_out, const Shape&, const Shape&, bool) {
  return {q_out, k_out};
}

std::vector<paddle::DataType> infer_grad_dtype(const paddle::DataType&, const paddle::DataType&, const OptionalDType&,
                                               const paddle::DataType& q_out, const paddle::DataType& k_out,
                                               const paddle::DataType&, const paddle::DataType&) {
  return {q_out, k_out};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_fusion_rope)
    .Inputs({"q", "k", "cos", "sin", paddle::Optional("position_ids")})
    .Outputs({"q_out", "k_out"})
    .Attrs({"interleaved: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));

PD_BUILD_GRAD_OP(fusionkit_fusion_rope)
    .Inputs({"cos", "sin", paddle::Optional("position_ids"), "q_out", "k_out", paddle::Grad("q_out"),
             paddle::Grad("k_out")})
    .Outputs({paddle::Grad("q"), paddle::Grad("k")})
    .Attrs({"interleaved: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::backward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_grad_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_grad_dtype));

FUSIONKIT_DIFFERENTIABLE_ONCE(fusionkit_fusion_rope, "q", "q_out");
