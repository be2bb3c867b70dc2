// What every custom op needs: Paddle's tensors as views of host memory, and the kernel library's exceptions as
// Paddle's.
#pragma once

#include <vector>

#include "fusionkit_cpu.h"
#include "paddle/phi/api/ext/op_meta_info.h"

namespace fusionkit_paddle {

using Shape = std::vector<int64_t>;
using Tensors = std::vector<paddle::Tensor>;
using OptionalTensor = paddle::optional<paddle::Tensor>;
using OptionalShape = paddle::optional<Shape>;
using OptionalDType = paddle::optional<paddle::DataType>;

// Views of one op's arguments. Refuses a missing tensor, one that is not in host memory and one of a foreign dtype.
class HostView {
 public:
  explicit HostView(const char* op) : op_(op) {}
  fusionkit_cpu::Tensor operator()(const char* argument, const paddle::Tensor& tensor) const;
  fusionkit_cpu::Tensor operator()(const char* argument, const OptionalTensor& tensor) const;
  // A contiguous tensor with its leading axes merged, so that `num_dims` remain.
  fusionkit_cpu::Tensor merged(const char* argument, const paddle::Tensor& tensor, int num_dims) const;
  // The bytes of a uint8 tensor.
  const void* bytes(const char* argument, const paddle::Tensor& tensor) const;

 private:
  void require_host(const char* argument, const paddle::Tensor& tensor) const;

  const char* op_;
};

// A shape without its last axis.
Shape leading_axes(Shape shape);
Shape with_last_axis(Shape shape, int64_t size);
// Of x [..., in_features] times a weight [in_features, out_features].
Shape product_shape(Shape x, const Shape& weight);

paddle::Tensor empty(const Shape& shape, paddle::DataType dtype);
paddle::Tensor empty_like(const paddle::Tensor& tensor);
// Stands for a gradient that nobody asked for: Paddle accepts no undefined tensor there.
paddle::Tensor no_gradient(const paddle::Tensor& tensor);
// The gradient of an output that nothing used is undefined in dynamic mode.
paddle::Tensor or_zeros(const paddle::Tensor& gradient, const paddle::Tensor& output);

[[noreturn]] void rethrow_as_paddle_error();

template <auto function>
struct Guarded;

// Paddle ends the process when anything but its own exceptions leaves a kernel.
template <class... Args, Tensors (*function)(Args...)>
struct Guarded<function> {
  static Tensors run(Args... args) {
    try {
      return function(args...);
    } catch (...) {
      rethrow_as_paddle_error();
    }
  }
};

[[noreturn]] void refuse_second_derivative(const char* op);

// Only a gradient taken with create_graph=True records this kernel; first-order training never meets it.
template <const char* op>
Tensors second_derivative(const paddle::Tensor&) {
  refuse_second_derivative(op);
}

}  // namespace fusionkit_paddle

#define FUSIONKIT_KERNEL(function) PD_KERNEL(fusionkit_paddle::Guarded<&function>::run)

// Without a double-grad op Paddle drops second-order terms silently in dynamic mode. (In a traced program it stops them
// at a custom op's gradient in any case.) `input` has a gradient, `output` takes one; which of several does not matter.
#define FUSIONKIT_DIFFERENTIABLE_ONCE(op, input, output) \
  PD_BUILD_DOUBLE_GRAD_OP(op)                            \
      .Inputs({paddle::Grad(paddle::Grad(input))})       \
      .Outputs({paddle::Grad(paddle::Grad(output))})     \
      .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::second_derivative<fusionkit_paddle::kOp>))
