// fusionkit_fused_linear_packed: x, packed (the bytes of a packed weight), bias? -> y. For inference: it has no
// gradient.
#include "fused_linear_packed.h"

#include "host_view.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_fused_linear_packed";

Tensors forward(const paddle::Tensor& x, const paddle::Tensor& packed, const OptionalTensor& bias, int64_t in_features,
                int64_t out_features, bool batch_invariant) {
  const HostView view(kOp);
  const auto x_view = view("x", x);
  const auto bias_view = view("bias", bias);
  const void* bytes = view.bytes("packed", packed);
  paddle::Tensor y = empty(with_last_axis(x.shape(), out_features), x.dtype());
  fusionkit_cpu::linear_packed(x_view, bytes, static_cast<size_t>(packed.numel()), in_features, out_features, bias_view,
                               view("y", y), batch_invariant);
  return {y};
}

std::vector<Shape> infer_shape(const Shape& x, const Shape&, const OptionalShape&, int64_t, int64_t out_features,
                               bool) {
  return {with_last_axis(x, out_features)};
}

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& x, const paddle::DataType&, const OptionalDType&) {
  return {x};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_fused_linear_packed)
    .Inputs({"x", "packed", paddle::Optional("bias")})
    .Outputs({"y"})
    .Attrs({"in_features: int64_t", "out_features: int64_t", "batch_invariant: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));
