// fusionkit_flash_attention: q, k, v, attn_mask?, startend_row_indices? -> out, lse. Both results are differentiable.
#include "flash_attention.h"

#include "host_view.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_flash_attention";

fusionkit_cpu::AttentionMask mask_view(const HostView& view, bool causal, const OptionalTensor& attn_mask,
                                       const OptionalTensor& startend_row_indices) {
  return {causal, view("attn_mask", attn_mask), view("startend_row_indices", startend_row_indices)};
}

Shape lse_shape(const Shape& q) { return q.size() == 4 ? Shape{q[0], q[2], q[1]} : Shape{}; }

Tensors forward(const paddle::Tensor& q, const paddle::Tensor& k, const paddle::Tensor& v,
                const OptionalTensor& attn_mask, const OptionalTensor& startend_row_indices, bool causal, float scale) {
  const HostView view(kOp);
  const auto q_view = view("q", q);
  const auto k_view = view("k", k);
  const auto v_view = view("v", v);
  const auto mask = mask_view(view, causal, attn_mask, startend_row_indices);
  paddle::Tensor out = empty_like(q);
  paddle::Tensor lse = empty(lse_shape(q.shape()), paddle::DataType::FLOAT32);
  fusionkit_cpu::flash_attention(q_view, k_view, v_view, mask, scale, view("out", out), view("lse", lse));
  return {out, lse};
}

Tensors backward(const paddle::Tensor& q, const paddle::Tensor& k, const paddle::Tensor& v,
                 const OptionalTensor& attn_mask, const OptionalTensor& startend_row_indices, const paddle::Tensor& out,
                 const paddle::Tensor& lse, const paddle::Tensor& out_gradient, const paddle::Tensor& lse_gradient,
                 bool causal, float scale) {
  const HostView view(kOp);
  const auto mask = mask_view(view, causal, attn_mask, startend_row_indices);
  const paddle::Tensor dout = or_zeros(out_gradient, out);
  fusionkit_cpu::Tensor dlse;
  if (lse_gradient.initialized()) dlse = view("the gradient of lse", lse_gradient);
  paddle::Tensor dq = empty_like(q);
  paddle::Tensor dk = empty_like(k);
  paddle::Tensor dv = empty_like(v);
  fusionkit_cpu::flash_attention_grad(view("q", q), view("k", k), view("v", v), view("out", out), view("lse", lse),
                                      mask, scale, view("the gradient of out", dout), dlse, view("dq", dq),
                                      view("dk", dk), view("dv", dv));
  return {dq, dk, dv};
}

std::vector<Shape> infer_shape(const Shape& q, const Shape&, const Shape&, const OptionalShape&, const OptionalShape&,
                               bool, float) {
  return {q, lse_shape(q)};
}

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& q, const paddle::DataType&, const paddle::DataType&,
                                          const OptionalDType&, const OptionalDType&) {
  return {q, paddle::DataType::FLOAT32};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_flash_attention)
    .Inputs({"q", "k", "v", paddle::Optional("attn_mask"), paddle::Optional("startend_row_indices")})
    .Outputs({"out", "lse"})
    .Attrs({"causal: bool", "scale: float"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));

PD_BUILD_GRAD_OP(fusionkit_flash_attention)
    .Inputs({"q", "k", "v", paddle::Optional("attn_mask"), paddle::Optional("startend_row_indices"), "out", "lse",
             paddle::Grad("out"), paddle::Grad("lse")})
    .Outputs({paddle::Grad("q"), paddle::Grad("k"), paddle::Grad("v")})
    .Attrs({"causal: bool", "scale: float"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::backward));

FUSIONKIT_DIFFERENTIABLE_ONCE(fusionkit_flash_attention, "q", "out");
