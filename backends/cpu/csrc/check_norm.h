// What the normalisations check alike.
#pragma once

#include <cmath>
#include <sstream>

#include "check.h"

namespace fusionkit_cpu {

// x [..., H] and weight [H]; returns the number of rows.
inline int64_t check_norm(const char* op, const char* x_name, const Tensor& x, const Tensor& weight) {
  require_floating(op, x_name, x);
  require(x.num_dims >= 1 && x.shape[x.num_dims - 1] >= 1, op, x_name, "[..., hidden_size] with hidden_size >= 1", x);
  const int64_t hidden_size = x.shape[x.num_dims - 1];
  require_shape(op, "weight", weight, {hidden_size});
  return num_elements(x) / hidden_size;
}

inline void check_epsilon(const char* op, float epsilon) {
  if (epsilon >= 0 && std::isfinite(epsilon)) return;
  std::ostringstream got;
  got << epsilon;
  fail(op, "epsilon", "at least 0 and finite", got.str());
}

inline void check_norm_grad(const char* op, const Tensor& weight, const Tensor& rstd, int64_t num_rows,
                            const Tensor& dweight) {
  require_input(op, "rstd", rstd, {DType::kFloat32}, {num_rows});
  if (dweight) require_output_like(op, "dweight", dweight, "weight", weight);
}

}  // namespace fusionkit_cpu
