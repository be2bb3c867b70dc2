// fusion_rms_norm and fusion_add_rms_norm, and their gradients.
#include <cmath>

#include "fusion_add_rms_norm.h"
#include "fusion_rms_norm.h"
#include "judge.h"

namespace kernel_tests {
namespace {

constexpr float kEpsilon = 0.5f;  // so large that the gradient of a row of one element does not cancel to nothing

struct Gradients {
  Doubles dx, dweight;
};

struct Normalised {
  Doubles y, rstd;
};

Normalised normalise(const Doubles& h, const Doubles& weight) {
  const size_t size = weight.size();
  Normalised result{Doubles(h.size()), Doubles(h.size() / size)};
  for (size_t row = 0; row < result.rstd.size(); ++row) {
    double squares = 0;
    for (size_t i = 0; i < size; ++i) squares += h[row * size + i] * h[row * size + i];
    result.rstd[row] = 1 / std::sqrt(squares / static_cast<double>(size) + kEpsilon);
    for (size_t i = 0; i < size; ++i) result.y[row * size + i] = h[row * size + i] * result.rstd[row] * weight[i];
  }
  return result;
}

// With n = h rstd and g = dy weight: dx = rstd (g - n mean(g n)), dweight = sum over rows of dy n.
Gradients differentiate(const Doubles& h, const Doubles& weight, const Doubles& rstd, const Doubles& dy) {
  const size_t size = weight.size();
  Gradients result{Doubles(h.size()), Doubles(size)};
  for (size_t row = 0; row < rstd.size(); ++row) {
    double mean = 0;
    for (size_t i = 0; i < size; ++i) {
      const size_t at = row * size + i;
      mean += dy[at] * weight[i] * h[at] * rstd[row] / static_cast<double>(size);
      result.dweight[i] += dy[at] * h[at] * rstd[row];
    }
    for (size_t i = 0; i < size; ++i) {
      const size_t at = row * size + i;
      result.dx[at] = rstd[row] * (dy[at] * weight[i] - h[at] * rstd[row] * mean);
    }
  }
  return result;
}

void check_rms_norm(DType dtype, DType weight_dtype, int64_t rows, int64_t size) {
  begin_case(std::string("rms_norm ") + dtype_name(dtype) + " weight " + dtype_name(weight_dtype) + " " +
             text({rows, size}));
  const Guarded x = random(dtype, {rows, size}), weight = random(weight_dtype, {size}),
                dy = random(dtype, {rows, size});
  Guarded y(dtype, {rows, size}), rstd(DType::kFloat32, {rows}), dx(dtype, {rows, size}), dweight(weight_dtype, {size});
  fusionkit_cpu::rms_norm(x, weight, kEpsilon, y, rstd);
  const Normalised want = normalise(values(x), values(weight));
  expect_close("y", y, want.y, {4, 0.51});
  expect_close("rstd", rstd, want.rstd, {4, 0});
  fusionkit_cpu::rms_norm_grad(x, weight, rstd, dy, dx, dweight);
  const Gradients grads = differentiate(values(x), values(weight), want.rstd, values(dy));
  expect_close("dx", dx, grads.dx, {8, 0.55});
  expect_close("dweight", dweight, grads.dweight, {8, 0.55});
}

void check_add_rms_norm(DType dtype, DType residual_dtype, int64_t rows, int64_t size) {
  begin_case(std::string("add_rms_norm ") + dtype_name(dtype) + " residual " + dtype_name(residual_dtype) + " " +
             text({rows, size}));
  const Shape shape{rows, size};
  const Guarded x = random(dtype, shape), residual = random(residual_dtype, shape), weight = random(dtype, {size});
  const Guarded dy = random(dtype, shape), dresidual_out = random(residual_dtype, shape);
  Guarded y(dtype, shape), residual_out(residual_dtype, shape), rstd(DType::kFloat32, {rows});
  fusionkit_cpu::add_rms_norm(x, residual, weight, kEpsilon, y, residual_out, rstd);
  Doubles sum = values(x);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += residual[i];
  expect_equal("residual_out", residual_out, sum);  // sums of multiples of 1/64 below 4 need no rounding
  const Normalised want = normalise(sum, values(weight));
  expect_close("y", y, want.y, {4, 0.51});
  Guarded dx(dtype, shape), dresidual(residual_dtype, shape), dweight(dtype, {size});
  fusionkit_cpu::add_rms_norm_grad(residual_out, weight, rstd, dy, dresidual_out, dx, dresidual, dweight);
  Gradients grads = differentiate(sum, values(weight), want.rstd, values(dy));
  for (size_t i = 0; i < sum.size(); ++i) grads.dx[i] += dresidual_out[i];
  expect_close("dx", dx, grads.dx, {8, 0.55});
  expect_close("dresidual", dresidual, grads.dx, {8, 0.55});
  expect_close("dweight", dweight, grads.dweight, {8, 0.55});
}

}  // namespace

void check_norms(DType dtype) {
  const Shape shapes[] = {{1, 1}, {3, 15}, {2, 16}, {3, 17}, {5, 31}, {4, 33}, {2, 67}, {67, 515}};
  for (const Shape& shape : shapes)
    for (DType other : {dtype, DType::kFloat32}) {
      check_rms_norm(dtype, other, shape[0], shape[1]);
      check_add_rms_norm(dtype, other, shape[0], shape[1]);
      if (dtype == DType::kFloat32) break;
    }
}

}  // namespace kernel_tests
