// Argument checks and choice of the instruction set for normalisation, rotary embedding, SwiGLU and scale.
#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/scale.h"
#include "kernels/swiglu.h"

namespace fusionkit_cpu {
namespace {

// x [..., H] and weight [H]; returns the number of rows.
int64_t check_norm(const char* op, const char* x_name, const Tensor& x, const Tensor& weight) {
  require_floating(op, x_name, x);
  require(x.num_dims >= 1 && x.shape[x.num_dims - 1] >= 1, op, x_name, "[..., hidden_size] with hidden_size >= 1", x);
  const int64_t hidden_size = x.shape[x.num_dims - 1];
  require_shape(op, "weight", weight, {hidden_size});
  return num_elements(x) / hidden_size;
}

void check_epsilon(const char* op, float epsilon) {
  if (epsilon >= 0 && std::isfinite(epsilon)) return;
  std::ostringstream got;
  got << epsilon;
  fail(op, "epsilon", "at least 0 and finite", got.str());
}

void check_grad(const char* op, const Tensor& weight, const Tensor& rstd, int64_t num_rows, const Tensor& dweight) {
  require_input(op, "rstd", rstd, {DType::kFloat32}, {num_rows});
  if (dweight) require_output_like(op, "dweight", dweight, "weight", weight);
}

// A contiguous tensor as one row.
Tensor flat(const Tensor& tensor) {
  Tensor row = tensor;
  row.num_dims = 1;
  row.shape[0] = num_elements(tensor);
  row.strides[0] = 1;
  return row;
}

void check_like(const char* op, const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  require_dtype(op, name, tensor, {other.dtype});
  require_same_shape(op, name, tensor, other_name, other);
}

template <class Index>
std::vector<int64_t> read_positions(const Tensor& position_ids, int64_t max_position) {
  std::vector<int64_t> positions;
  positions.reserve(num_elements(position_ids));
  for (int64_t b = 0; b < position_ids.shape[0]; ++b)
    for (int64_t s = 0; s < position_ids.shape[1]; ++s) {
      const int64_t offset = b * position_ids.strides[0] + s * position_ids.strides[1];
      const int64_t position = static_cast<const Index*>(position_ids.data)[offset];
      if (position < 0 || position >= max_position)
        fail("fusion_rope", "position_ids", "in [0, " + std::to_string(max_position) + "), the rows of cos and sin",
             std::to_string(position) + "; at [" + std::to_string(b) + ", " + std::to_string(s) +
                 "]. Give longer tables or smaller positions");
      positions.push_back(position);
    }
  return positions;
}

// One position a token.
std::vector<int64_t> check_positions(const Tensor& x, const Tensor& position_ids, int64_t max_position) {
  const int64_t batch_size = x.shape[0], seq_len = x.shape[1];
  if (position_ids) {
    require_input("fusion_rope", "position_ids", position_ids, {DType::kInt32, DType::kInt64}, {batch_size, seq_len});
    return position_ids.dtype == DType::kInt32 ? read_positions<int32_t>(position_ids, max_position)
                                               : read_positions<int64_t>(position_ids, max_position);
  }
  if (seq_len > max_position)
    fail("fusion_rope", "x", "of a seq_len of at most " + std::to_string(max_position) + ", the rows of cos and sin",
         describe(x) + ". Give longer tables or position_ids");
  std::vector<int64_t> positions(batch_size * seq_len);
  for (int64_t token = 0; token < batch_size * seq_len; ++token) positions[token] = token % seq_len;
  return positions;
}

}  // namespace

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
  check_like(op, "dy", dy, "x", x);
  check_grad(op, weight, rstd, num_rows, dweight);
  if (dx) require_output_like(op, "dx", dx, "x", x);
  FUSIONKIT_DISPATCH(rms_norm_grad, x, weight, rstd, dy, Tensor{}, dx, Tensor{}, dweight);
}

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
  check_grad(op, weight, rstd, num_rows, dweight);
  if (dresidual_out) check_like(op, "dresidual_out", dresidual_out, "residual_out", residual_out);
  if (dx) require_output_like(op, "dx", dx, "dy", dy);
  if (dresidual) require_output_like(op, "dresidual", dresidual, "residual_out", residual_out);
  FUSIONKIT_DISPATCH(rms_norm_grad, residual_out, weight, rstd, dy, dresidual_out, dx, dresidual, dweight);
}

void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& position_ids, bool interleaved,
          bool inverse, const Tensor& y) {
  require_floating("fusion_rope", "x", x);
  require(x.num_dims == 4 && x.shape[3] % 2 == 0, "fusion_rope", "x",
          "[batch_size, seq_len, num_heads, head_dim] with an even head_dim", x);
  require_num_dims("fusion_rope", "cos", cos, 2);
  const int64_t max_position = cos.shape[0];
  require_input("fusion_rope", "cos", cos, {DType::kFloat32}, {max_position, x.shape[3] / 2});
  require_input("fusion_rope", "sin", sin, {DType::kFloat32}, {max_position, x.shape[3] / 2});
  require_output_like("fusion_rope", "y", y, "x", x);
  const std::vector<int64_t> positions = check_positions(x, position_ids, max_position);
  FUSIONKIT_DISPATCH(rope, x, cos, sin, positions.data(), interleaved, inverse, y);
}

void swiglu(const Tensor& gate, const Tensor& up, const Tensor& y) {
  require_floating("swiglu", "gate", gate);
  check_like("swiglu", "up", up, "gate", gate);
  require_output_like("swiglu", "y", y, "gate", gate);
  if (is_contiguous(gate) && is_contiguous(up)) return FUSIONKIT_DISPATCH(swiglu, flat(gate), flat(up), flat(y));
  FUSIONKIT_DISPATCH(swiglu, gate, up, y);
}

void swiglu_grad(const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate, const Tensor& dup) {
  const char* op = "swiglu_grad";
  require_floating(op, "gate", gate);
  check_like(op, "up", up, "gate", gate);
  check_like(op, "dy", dy, "gate", gate);
  require_output_like(op, "dgate", dgate, "gate", gate);
  require_output_like(op, "dup", dup, "gate", gate);
  if (is_contiguous(gate) && is_contiguous(up) && is_contiguous(dy))
    return FUSIONKIT_DISPATCH(swiglu_grad, flat(gate), flat(up), flat(dy), flat(dgate), flat(dup));
  FUSIONKIT_DISPATCH(swiglu_grad, gate, up, dy, dgate, dup);
}

void scale(const Tensor& x, const Tensor& factor) {
  require_floating("scale", "x", x);
  require(is_contiguous(x), "scale", "x", "contiguous", x);
  require_input("scale", "factor", factor, {DType::kFloat32}, {1});
  const float value = *static_cast<const float*>(factor.data);
  if (value != 1.0f) FUSIONKIT_DISPATCH(scale, x, value, x);
}

void scale(const Tensor& x, const Tensor& factor, const Tensor& y) {
  require_floating("scale", "x", x);
  require(is_contiguous(x), "scale", "x", "contiguous", x);
  require_output_like("scale", "y", y, "x", x);
  require_input("scale", "factor", factor, {DType::kFloat32}, {1});
  FUSIONKIT_DISPATCH(scale, x, *static_cast<const float*>(factor.data), y);
}

}  // namespace fusionkit_cpu
