#include "fused_linear_cross_entropy.h"

#include <cmath>

#include "kernels/simd.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

// Terms per lane and block: blocks are added in double, so that 32000 terms lose no more than a few hundred would.
constexpr int64_t kBlock = 64 * kLanes;

float row_maximum(const float* logits, int64_t n) {
  float largest = logits[0];
  int64_t i = 0;
  if (n >= kLanes) {
    Vec lanes = load(logits);
    for (i = kLanes; i + kLanes <= n; i += kLanes) lanes = max(lanes, load(logits + i));
    largest = maximum(lanes);
  }
  for (; i < n; ++i) largest = logits[i] > largest ? logits[i] : largest;
  return largest;
}

// Replaces logits by exp(logits - largest) and returns their sum.
double exponentials(float* logits, int64_t n, float largest) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    Vec lanes{};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Vec e = exp(load(logits + i) - largest);
      store(logits + i, e);
      lanes += e;
    }
    total += sum(lanes);
    if (i < end) {
      const Vec e = exp(load_partial(logits + i, end - i) - largest);
      store_partial(logits + i, e, end - i);
      for (int64_t j = i; j < end; ++j) total += logits[j];
    }
  }
  return total;
}

// gradient = others * factor but for the label. In place when T is float: an element is read before it is written.
// Returns the sum of the gradient as it is stored, which is rounding alone.
template <class T>
float scaled(const float* others, int64_t n, float factor, int64_t label, float at_label, T* gradient) {
  Vec sums{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(gradient + i, load(others + i) * factor);
    sums += load(gradient + i);
  }
  if (i < n) {
    store_partial(gradient + i, load_partial(others + i, n - i) * factor, n - i);
    sums += load_partial(gradient + i, n - i);
  }
  if (label < 0) return sum(sums);
  gradient[label] = from_float<T>(at_label);  // was 0: others[label] is
  return sum(sums) + to_float(gradient[label]);
}

}  // namespace

// The label's own term stays out of the sum: a probability near 1 would drown the others, which its gradient,
// -others / total, and a small loss consist of.
RowStatistics row_statistics(float* logits, int64_t n, int64_t label) {
  const float largest = row_maximum(logits, n);
  const double label_logit = label < 0 ? 0.0 : logits[label];
  if (label >= 0) logits[label] = -INFINITY;
  // Where every logit of this rank is -inf, another rank may have a finite one: 0 of them count, not NaN.
  return {largest, exponentials(logits, n, largest == -INFINITY ? 0.0F : largest), label_logit};
}

float row_gradient(const float* exponentials, int64_t n, int64_t label, float factor, float at_label,
                   DType gradient_dtype, void* gradient) {
  if (gradient_dtype == DType::kBFloat16)
    return scaled(exponentials, n, factor, label, at_label, static_cast<BFloat16*>(gradient));
  return scaled(exponentials, n, factor, label, at_label, static_cast<float*>(gradient));
}

void subtract_column(const Matrix& m, int64_t col, float factor, int64_t begin, int64_t end, float* sums) {
  visit_floating(m.dtype, [&](auto* type) {
    const auto* column = static_cast<decltype(type)>(m.data) + col * m.col_stride;
    for (int64_t row = begin; row < end; ++row) sums[row] -= factor * to_float(column[row * m.row_stride]);
  });
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
