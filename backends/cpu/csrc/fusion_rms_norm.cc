#include "fusion_rms_norm.h"

#include "check_norm.h"

namespace fusionkit_cpu {

void rms_norm(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y, const Tensor& rstd) {
  const char* op = "fusion_rms_norm";
  const int64_t num_rows = check_norm(op, "x", x, weight);
  require_dtype(op, "weight", weight, {x.dtype, DType::kFloat32});
  check_epsilon(op, epsilon);
  require_output_like(op, "y", y, "x", x);
  if (rstd) require_output(op, "rstd", rstd, DType::kFloat32, {num_rows});
  FUSIONKIT_DISPATCH(rms_norm, x, weight, epsilon, y, rstd);
}

void rms_norm_grad(const Tensor& x, const Tensor& weight, const Tensor& rstd, const Tensor& dy, const Tensor& dx,
                   const Tensor& dweight) {
  const char* op = "fusion_rms_norm_grad";
  const int64_t num_rows = check_norm(op, "x", x, weight);
  require_dtype(op, "weight", weight, {x.dtype, DType::kFloat32});
  require_like(op, "dy", dy, "x", x);
  check_norm_grad(op, weight, rstd, num_rows, dweight);
  if (dx) require_output_like(op, "dx", dx, "x", x);
  FUSIONKIT_DISPATCH(rms_norm_grad, x, weight, rstd, dy, Tensor{}, dx, Tensor{}, dweight);
}

}  // namespace fusionkit_cpu
