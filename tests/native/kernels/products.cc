// fused_linear, its gradient, packed weights, and fused_linear_cross_entropy.
#include <cmath>

#include "fused_linear.h"
#include "fused_linear_cross_entropy.h"
#include "fused_linear_packed.h"
#include "judge.h"

namespace kernel_tests {
namespace {

struct Sizes {
  int64_t rows, in, out;
};

// sum over k of a[i, k] b[k, j]; strides as (of i, of k) and (of k, of j).
Doubles multiply(const Sizes& s, const Doubles& a, Shape a_strides, const Doubles& b, Shape b_strides) {
  Doubles c(s.rows * s.out);
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t k = 0; k < s.in; ++k)
      for (int64_t j = 0; j < s.out; ++j)
        c[i * s.out + j] += a[i * a_strides[0] + k * a_strides[1]] * b[k * b_strides[0] + j * b_strides[1]];
  return c;
}

void check_linear(DType dtype, DType weight_dtype, const Sizes& s, bool with_bias) {
  begin_case(std::string("linear ") + dtype_name(dtype) + " weight " + dtype_name(weight_dtype) + " " +
             text({s.rows, s.in, s.out}) + (with_bias ? " bias" : ""));
  const Guarded x = random(dtype, {s.rows, s.in}), weight = random(weight_dtype, {s.in, s.out});
  const Guarded bias = random(weight_dtype, {s.out}), dy = random(dtype, {s.rows, s.out});
  const Tensor used_bias = with_bias ? bias.view() : Tensor{};
  Guarded y(dtype, {s.rows, s.out}), dx(dtype, {s.rows, s.in}), dweight(weight_dtype, {s.in, s.out});
  Guarded dbias(weight_dtype, {s.out});
  fusionkit_cpu::linear(x, weight, used_bias, y);
  fusionkit_cpu::linear_grad(x, weight, dy, dx, dweight, with_bias ? dbias.view() : Tensor{});

  Doubles want = multiply(s, values(x), {s.in, 1}, values(weight), {s.out, 1}), want_dbias(s.out);
  for (int64_t i = 0; i < y.size(); ++i) {
    if (with_bias) want[i] += bias[i % s.out];
    want_dbias[i % s.out] += dy[i];
  }
  expect_close("y", y, want, {128, 0.52});
  expect_close("dx", dx, multiply({s.rows, s.out, s.in}, values(dy), {s.out, 1}, values(weight), {1, s.out}),
               {128, 0.52});
  expect_close("dweight", dweight, multiply({s.in, s.rows, s.out}, values(x), {1, s.in}, values(dy), {s.out, 1}),
               {128, 0.52});
  if (with_bias) expect_close("dbias", dbias, want_dbias, {128, 0.52});

  const int64_t packed_size = static_cast<int64_t>(fusionkit_cpu::packed_weight_size(weight, dtype));
  Guarded packed(DType::kBool, {packed_size}, 64), y_packed(dtype, {s.rows, s.out});
  fusionkit_cpu::pack_weight(weight, dtype, false, packed.data());
  fusionkit_cpu::linear_packed(x, packed.data(), packed_size, s.in, s.out, used_bias, y_packed);
  expect_close("y of the packed weight", y_packed, want, {128, 0.52});

  const bool batch_invariant = true;
  Guarded y_alike(dtype, {s.rows, s.out});
  fusionkit_cpu::linear(x, weight, used_bias, y_alike, batch_invariant);
  expect_close("y, batch invariant", y_alike, want, {128, 0.52});
}

struct Loss {
  double sum = 0, num_tokens = 0;
  Doubles dx, dweight;
};

constexpr int64_t kIgnored = -100;

Loss cross_entropy(const Guarded& x, const Guarded& weight, const Guarded& labels) {
  const Sizes s{x.dim(0), x.dim(1), weight.dim(1)};
  Loss loss;
  Doubles gradient = multiply(s, values(x), {s.in, 1}, values(weight), {s.out, 1});
  for (int64_t row = 0; row < s.rows; ++row) {
    double *logits = gradient.data() + row * s.out, top = logits[0], total = 0;
    const bool counts = labels[row] != kIgnored;
    for (int64_t j = 0; j < s.out; ++j) top = std::fmax(top, logits[j]);
    for (int64_t j = 0; j < s.out; ++j) total += std::exp(logits[j] - top);
    if (counts) loss.sum += std::log(total) + top - logits[static_cast<int64_t>(labels[row])];
    loss.num_tokens += counts;
    for (int64_t j = 0; j < s.out; ++j)
      logits[j] = counts ? std::exp(logits[j] - top) / total - (j == static_cast<int64_t>(labels[row])) : 0;
  }
  loss.dx = multiply({s.rows, s.out, s.in}, gradient, {s.out, 1}, values(weight), {1, s.out});
  loss.dweight = multiply({s.in, s.rows, s.out}, values(x), {1, s.in}, gradient, {s.out, 1});
  return loss;
}

void check_cross_entropy(DType dtype, DType weight_dtype, const Sizes& s) {
  begin_case(std::string("cross_entropy ") + dtype_name(dtype) + " weight " + dtype_name(weight_dtype) + " " +
             text({s.rows, s.in, s.out}));
  const Guarded x = random(dtype, {s.rows, s.in}), weight = random(weight_dtype, {s.in, s.out});
  const Guarded labels = filled(s.rows % 2 ? DType::kInt64 : DType::kInt32, {s.rows},
                                [&](int64_t row) { return row % 4 == 3 ? kIgnored : random_below(s.out); });
  Guarded sum(DType::kFloat32, {1}), num_tokens(DType::kInt64, {1}), dx(dtype, {s.rows, s.in});
  Guarded dweight(weight_dtype, {s.in, s.out});
  const Loss want = cross_entropy(x, weight, labels);
  fusionkit_cpu::linear_cross_entropy(x, weight, labels, kIgnored, sum, num_tokens, {}, {});
  expect_close("loss alone", sum, {want.sum}, {16, 0});
  fusionkit_cpu::linear_cross_entropy(x, weight, labels, kIgnored, sum, num_tokens, dx, dweight);
  expect_close("loss", sum, {want.sum}, {16, 0});
  expect_equal("num_tokens", num_tokens, {want.num_tokens});
  expect_close("dx", dx, want.dx, {96, 1.6});
  expect_close("dweight", dweight, want.dweight, {96 * (dtype == DType::kFloat32 ? 1.0 : 4096.0), 1.6});
}

}  // namespace

void check_linear(DType dtype) {
  const Sizes sizes[] = {{1, 1, 1}, {3, 5, 7}, {1, 33, 31}, {15, 16, 17}, {2, 67, 130}, {13, 1, 33}, {70, 130, 97}};
  for (const Sizes& s : sizes)
    for (DType weight_dtype : {dtype, DType::kFloat32}) {
      check_linear(dtype, weight_dtype, s, false);
      check_linear(dtype, weight_dtype, s, true);
      if (dtype == DType::kFloat32) break;
    }
}

void check_cross_entropy(DType dtype) {
  for (const Sizes& s : {Sizes{1, 1, 2}, Sizes{5, 17, 31}, Sizes{8, 33, 67}, Sizes{70, 20, 515}})
    for (DType weight_dtype : {dtype, DType::kFloat32}) check_cross_entropy(dtype, weight_dtype, s);
}

}  // namespace kernel_tests
