// One row of the online softmax.
#pragma once

#include "kernels/operands.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// What scores or probabilities are multiplied by: nothing where keys and values are floats, else each by the scale of
// its row of codes. `from(i)` is that of the keys from i on.
struct Unscaled {
  Vec operator()(Vec a, int64_t) const { return a; }
  Unscaled from(int64_t) const { return {}; }
};
struct Scaled {
  const float* scales;
  Vec operator()(Vec a, int64_t i) const { return a * load(scales + i); }
  Scaled from(int64_t i) const { return {scales + i}; }
};

inline float row_maximum(const float* scores, int64_t width) {
  Vec highest = load(scores);
  for (int64_t i = kLanes; i < width; i += kLanes) highest = max(highest, load(scores + i));
  return maximum(highest);
}

// The factor that brings sums under the old maximum under the new one, both in units of the operand's power. A row that
// has seen nothing keeps -inf, but is shifted by 0: power(-inf - 0) is 0, power(-inf + inf) would be NaN.
struct Shift {
  float maximum, amount, rescale;
};

template <class Operand>
Shift raise_maximum(float old_maximum, float row_maximum) {
  const float highest = row_maximum > old_maximum ? row_maximum : old_maximum;
  const float amount = highest == -kInfinity ? 0.0f : highest;
  const float rescale = old_maximum == highest ? 1.0f : Operand::power(broadcast(old_maximum - amount))[0];
  return {highest, amount, rescale};
}

// Adds the row's scores, times `factor`, to its maximum and sum, and gives their probabilities under the new maximum.
// highest is their row_maximum. Returns the factor for what was accumulated before. What is stored is also multiplied
// by the values' scales.
template <class Operand, class Scaling = Unscaled>
float soften_row(const float* scores, int64_t width, float factor, float highest, float& maximum, float& sum,
                 typename Operand::Element* probabilities, const Scaling& of_values = {}) {
  const Shift shift = raise_maximum<Operand>(maximum, highest * factor);
  Vec sums{};
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vec p = Operand::power(fma(load(scores + i), broadcast(factor), broadcast(-shift.amount)));
    sums += p;
    store(probabilities + i, of_values(p, i));
  }
  maximum = shift.maximum;
  sum = sum * shift.rescale + FUSIONKIT_ISA::sum(sums);
  return shift.rescale;
}

inline void scale_row(float* row, int64_t width, float factor) {
  for (int64_t i = 0; i < width; i += kLanes) store(row + i, load(row + i) * broadcast(factor));
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
