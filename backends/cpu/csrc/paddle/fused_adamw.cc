// fusionkit_fused_adamw: param, moment1 and moment2 updated in place; the factors as in AdamWFactors.
#include "fused_adamw.h"

#include "host_view.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_fused_adamw";

Tensors forward(paddle::Tensor& param, const paddle::Tensor& grad, paddle::Tensor& moment1, paddle::Tensor& moment2,
                float grad_scale, float beta1, float one_minus_beta1, float beta2, float one_minus_beta2,
                float root_factor, float epsilon, float decay, float step_size) {
  const HostView view(kOp);
  fusionkit_cpu::adamw(
      view("param", param), view("grad", grad), view("moment1", moment1), view("moment2", moment2),
      {grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, root_factor, epsilon, decay, step_size});
  return {};
}

// Every result is written in place and has no entry here.
std::vector<Shape> infer_shape(const Shape&, const Shape&, const Shape&, const Shape&, float, float, float, float,
                               float, float, float, float, float) {
  return {};
}

std::vector<paddle::DataType> infer_dtype(const paddle::DataType&, const paddle::DataType&, const paddle::DataType&,
                                          const paddle::DataType&) {
  return {};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_fused_adamw)
    .Inputs({"param", "grad", "moment1", "moment2"})
    .Outputs({"param_out", "moment1_out", "moment2_out"})
    .Attrs({"grad_scale: float", "beta1: float", "one_minus_beta1: float", "beta2: float", "one_minus_beta2: float",
            "root_factor: float", "epsilon: float", "decay: float", "step_size: float"})
    .SetInplaceMap({{"param", "param_out"}, {"moment1", "moment1_out"}, {"moment2", "moment2_out"}})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));
