// Attention of one query head by plain loops in double, and its gradients.
#pragma once

#include <cmath>
#include <functional>

#include "judge.h"

namespace kernel_tests {

// Which scores a mask changes: an addend, -inf where the key is hidden. Arguments: batch, query head, query, key.
using Bias = std::function<double(int64_t, int64_t, int64_t, int64_t)>;

// A tensor's values, decoded once.
struct Numbers {
  Numbers(const Guarded& of) : tensor(of), all(values(of)) {}
  double operator[](int64_t i) const { return all[i]; }
  int64_t dim(int axis) const { return tensor.dim(axis); }
  int64_t size() const { return tensor.size(); }

  const Guarded& tensor;
  const Doubles all;
};

// Where element (batch, position, head, 0) of [batch, length, heads, size] lies.
inline int64_t place(const Numbers& tensor, int64_t batch, int64_t position, int64_t head) {
  return ((batch * tensor.dim(1) + position) * tensor.dim(2) + head) * tensor.dim(3);
}

inline double dot(const Numbers& a, int64_t a_at, const Numbers& b, int64_t b_at, int64_t size) {
  double total = 0;
  for (int64_t i = 0; i < size; ++i) total += a[a_at + i] * b[b_at + i];
  return total;
}

struct Probabilities {
  Doubles of_key;
  double lse;
};

inline Probabilities softmax(Doubles scores) {
  double top = -INFINITY, total = 0;
  for (double score : scores) top = std::fmax(top, score);
  if (top == -INFINITY) return {Doubles(scores.size()), -INFINITY};
  for (double& score : scores) total += score = std::exp(score - top);
  for (double& score : scores) score /= total;
  return {scores, top + std::log(total)};
}

}  // namespace kernel_tests
