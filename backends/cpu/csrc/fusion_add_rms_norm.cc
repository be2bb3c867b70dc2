#include "fusion_add_rms_norm.h"

#include "check_norm.h"
#include "fusion_rms_norm.h"

namespace fusionkit_cpu {

void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float epsilon, const Tensor& y,
                  const Tensor& residual_out, const Tensor& rstd) {
  const char* op = "fusion_add_rms_norm";
  const int64_t num_rows = check_norm(op, "x", x, weight);
  require_dtype(op, "weight", weight, {x.dtype, DType::kFloat32});
  require_floating(op, "residual", residual);
  require_same_shape(op, "residual", residual, "x", x);
  check_epsilon(op, epsilon);
  require_output_like(op, "y", y, "x", x);
  require_output_like(op, "residual_out", residual_out, "residual", residual);
  if (rstd) require_output(op, "rstd", rstd, DType::kFloat32, {num_rows});
  FUSIONKIT_DISPATCH(add_rms_norm, x, residual, weight, epsilon, y, residual_out, rstd);
}

void add_rms_norm_grad(const Tensor& residual_out, const Tensor& weight, const Tensor& rstd, const Tensor& dy,
                       const Tensor& dresidual_out, const Tensor& dx, const Tensor& dresidual, const Tensor& dweight) {
  const char* op = "fusion_add_rms_norm_grad";
  const int64_t num_rows = check_norm(op, "residual_out", residual_out, weight);
  require_floating(op, "dy", dy);  // has x's dtype, which only weight's check below can tell
  require_dtype(op, "weight", weight, {dy.dtype, DType::kFloat32});
  require_same_shape(op, "dy", dy, "residual_out", residual_out);
  check_norm_grad(op, weight, rstd, num_rows, dweight);
  if (dresidual_out) require_like(op, "dresidual_out", dresidual_out, "residual_out", residual_out);
  if (dx) require_output_like(op, "dx", dx, "dy", dy);
  if (dresidual) require_output_like(op, "dresidual", dresidual, "residual_out", residual_out);
  FUSIONKIT_DISPATCH(rms_norm_grad, residual_out, weight, rstd, dy, dresidual_out, dx, dresidual, dweight);
}

}  // namespace fusionkit_cpu
