// fusionkit_fused_linear_cross_entropy: x, weight, labels -> loss_sum, num_tokens, x_gradient, weight_gradient.
// The last two are d(loss_sum), taken in the forward pass when x_grad or weight_grad asks for them, else [0].
#include "fused_linear_cross_entropy.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "host_view.h"
#include "scale.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_fused_linear_cross_entropy";

// Merging the axes would let others with the same product pass.
void require_labels_like_rows(const fusionkit_cpu::Tensor& labels, const fusionkit_cpu::Tensor& x) {
  if (labels.num_dims == x.num_dims - 1 && std::equal(labels.shape, labels.shape + labels.num_dims, x.shape)) return;
  std::string got;
  for (int i = 0; i < labels.num_dims; ++i) got += (i ? ", " : "") + std::to_string(labels.shape[i]);
  throw std::invalid_argument(std::string(kOp) + ": labels must be [...], the leading axes of x, got [" + got + "]");
}

Tensors forward(const paddle::Tensor& x, const paddle::Tensor& weight, const paddle::Tensor& labels,
                int64_t ignore_index, bool x_grad, bool weight_grad) {
  const HostView view(kOp);
  require_labels_like_rows(view("labels", labels), view("x", x));
  const auto weight_view = view("weight", weight);
  // Paddle hands a program's own inputs over as they come, strided views included.
  const paddle::Tensor rows = x.contiguous();
  const paddle::Tensor row_labels = labels.contiguous();
  paddle::Tensor loss_sum = empty({}, paddle::DataType::FLOAT32);
  paddle::Tensor num_tokens = empty({}, paddle::DataType::INT64);
  paddle::Tensor dx = x_grad ? empty_like(x) : no_gradient(x);
  paddle::Tensor dweight = weight_grad ? empty_like(weight) : no_gradient(weight);
  fusionkit_cpu::linear_cross_entropy(view.merged("x", rows, 2), weight_view, view.merged("labels", row_labels, 1),
                                      ignore_index, view.merged("loss_sum", loss_sum, 1),
                                      view.merged("num_tokens", num_tokens, 1),
                                      x_grad ? view.merged("dx", dx, 2) : fusionkit_cpu::Tensor(),
                                      weight_grad ? view("dweight", dweight) : fusionkit_cpu::Tensor());
  return {loss_sum, num_tokens, dx, dweight};
}

// A copy: the saved gradient is needed again when the graph is retained.
paddle::Tensor scaled(const HostView& view, const paddle::Tensor& gradient, const fusionkit_cpu::Tensor& factor) {
  paddle::Tensor result = empty_like(gradient);
  if (gradient.numel() > 0) fusionkit_cpu::scale(view("gradient", gradient), factor, view("gradient", result));
  return result;
}

Tensors backward(const paddle::Tensor& x_gradient, const paddle::Tensor& weight_gradient,
                 const paddle::Tensor& dloss_sum) {
  const HostView view(kOp);
  const auto factor = view.merged("the gradient of loss_sum", dloss_sum, 1);
  return {scaled(view, x_gradient, factor), scaled(view, weight_gradient, factor)};
}

std::vector<Shape> infer_shape(const Shape& x, const Shape& weight, const Shape&, int64_t, bool x_grad,
                               bool weight_grad) {
  return {{}, {}, x_grad ? x : Shape{0}, weight_grad ? weight : Shape{0}};
}

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& x, const paddle::DataType& weight,
                                          const paddle::DataType&) {
  return {paddle::DataType::FLOAT32, paddle::DataType::INT64, x, weight};
}

// Paddle infers the gradients by itself only when the backward takes the forward's inputs.
std::vector<Shape> infer_grad_shape(const Shape& x_gradient, const Shape& weight_gradient, const Shape&) {
  return {x_gradient, weight_gradient};
}

std::vector<paddle::DataType> infer_grad_dtype(const paddle::DataType& x_gradient,
                                               const paddle::DataType& weight_gradient, const paddle::DataType&) {
  return {x_gradient, weight_gradient};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_fused_linear_cross_entropy)
    .Inputs({"x", "weight", "labels"})
    .Outputs({"loss_sum", "num_tokens", "x_gradient", "weight_gradient"})
    .Attrs({"ignore_index: int64_t", "x_grad: bool", "weight_grad: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));

PD_BUILD_GRAD_OP(fusionkit_fused_linear_cross_entropy)
    .Inputs({"x_gradient", "weight_gradient", paddle::Grad("loss_sum")})
    .Outputs({paddle::Grad("x"), paddle::Grad("weight")})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::backward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_grad_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_grad_dtype));

FUSIONKIT_DIFFERENTIABLE_ONCE(fusionkit_fused_linear_cross_entropy, "x", "loss_sum");
