// swiglu and its gradient, and scale.
#include "swiglu.h"

#include <cmath>

#include "judge.h"
#include "scale.h"

namespace kernel_tests {
namespace {

void check(DType dtype, const Shape& shape) {
  begin_case(std::string("swiglu ") + dtype_name(dtype) + " " + text(shape));
  const Guarded gate = random(dtype, shape), up = random(dtype, shape), dy = random(dtype, shape);
  Guarded y(dtype, shape), dgate(dtype, shape), dup(dtype, shape);
  fusionkit_cpu::swiglu(gate, up, y);
  fusionkit_cpu::swiglu_grad(gate, up, dy, dgate, dup);
  Doubles want(y.size()), want_dgate(y.size()), want_dup(y.size());
  for (int64_t i = 0; i < y.size(); ++i) {
    const double g = gate[i], sigmoid = 1 / (1 + std::exp(-g));
    want[i] = g * sigmoid * up[i];
    want_dup[i] = dy[i] * g * sigmoid;
    want_dgate[i] = dy[i] * up[i] * sigmoid * (1 + g * (1 - sigmoid));
  }
  expect_close("y", y, want, {4, 0.51});
  expect_close("dgate", dgate, want_dgate, {12, 0.55});
  expect_close("dup", dup, want_dup, {12, 0.55});
}

void check_scale(DType dtype, int64_t size) {
  begin_case(std::string("scale ") + dtype_name(dtype) + " " + text({size}));
  const Guarded x = random(dtype, {size});
  Doubles want = values(x);
  for (double& value : want) value *= -0.5;
  const Guarded factor = filled(DType::kFloat32, {1}, [](int64_t) { return -0.5; });
  fusionkit_cpu::scale(x, factor);
  expect_equal("x", x, want);
}

}  // namespace

void check_swiglu(DType dtype) {
  const Shape shapes[] = {{1, 1}, {3, 5}, {1, 16}, {1, 17}, {31}, {2, 33}, {3, 67}, {7, 5001}};
  for (const Shape& shape : shapes) check(dtype, shape);
  for (int64_t size : {1, 15, 17, 33, 140001}) check_scale(dtype, size);
}

}  // namespace kernel_tests
