// fusionkit_swiglu: gate, up -> y.
#include "swiglu.h"

#include "host_view.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_swiglu";

Tensors forward(const paddle::Tensor& gate, const paddle::Tensor& up) {
  const HostView view(kOp);
  const auto gate_view = view("gate", gate);
  const auto up_view = view("up", up);
  paddle::Tensor y = empty_like(gate);
  fusionkit_cpu::swiglu(gate_view, up_view, view("y", y));
  return {y};
}

Tensors backward(const paddle::Tensor& gate, const paddle::Tensor& up, const paddle::Tensor& dy) {
  const HostView view(kOp);
  paddle::Tensor dgate = empty_like(gate);
  paddle::Tensor dup = empty_like(up);
  fusionkit_cpu::swiglu_grad(view("gate", gate), view("up", up), view("the gradient of y", dy), view("dgate", dgate),
                             view("dup", dup));
  return {dgate, dup};
}

std::vector<Shape> infer_shape(const Shape& gate, const Shape&) { return {gate}; }

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& gate, const paddle::DataType&) { return {gate}; }

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_swiglu)
    .Inputs({"gate", "up"})
    .Outputs({"y"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));

PD_BUILD_GRAD_OP(fusionkit_swiglu)
    .Inputs({"gate", "up", paddle::Grad("y")})
    .Outputs({paddle::Grad("gate"), paddle::Grad("up")})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::backward));

FUSIONKIT_DIFFERENTIABLE_ONCE(fusionkit_swiglu, "gate", "y");
