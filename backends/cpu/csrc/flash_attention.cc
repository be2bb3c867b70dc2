#include "flash_attention.h"

#include <cmath>

#include "check.h"

namespace fusionkit_cpu {
namespace {

void require_scale(const char* op, float scale) {
  if (!std::isfinite(scale)) fail(op, "scale", "finite", std::to_string(scale));
}

void require_queries_keys_values(const char* op, const Tensor& q, const Tensor& k, const Tensor& v) {
  require_floating(op, "q", q);
  require_num_dims(op, "q", q, 4);
  require(q.shape[2] > 0 && q.shape[3] > 0, op, "q", "[batch_size, seq_len, heads, head_dim] with a head", q);
  require_num_dims(op, "k", k, 4);
  require_input(op, "k", k, {q.dtype}, {q.shape[0], k.shape[1], k.shape[2], q.shape[3]});
  if (k.shape[2] == 0 || q.shape[2] % k.shape[2] != 0)
    fail(op, "k", "of a number of heads that divides q's " + std::to_string(q.shape[2]), describe(k));
  require_like(op, "v", v, "k", k);
}

void require_attn_mask(const char* op, const Tensor& mask, const Tensor& q, const Tensor& k) {
  if (!mask) return;
  require_dtype(op, "attn_mask", mask, {DType::kBool, DType::kFloat32, DType::kBFloat16, DType::kFloat16});
  require_num_dims(op, "attn_mask", mask, 4);
  const bool broadcasts = (mask.shape[0] == 1 || mask.shape[0] == q.shape[0]) &&
                          (mask.shape[1] == 1 || mask.shape[1] == q.shape[2]) &&
                          (mask.shape[2] == 1 || mask.shape[2] == q.shape[1]) && mask.shape[3] == k.shape[1];
  if (broadcasts) return;
  const int64_t expected[] = {q.shape[0], q.shape[2], q.shape[1], k.shape[1]};
  fail(op, "attn_mask", shape_text(expected, 4) + " (the first three may be 1)", describe(mask));
}

void require_startend_row_indices(const char* op, const AttentionMask& mask, const Tensor& q, const Tensor& k) {
  const Tensor& rows = mask.startend_row_indices;
  if (!rows) return;
  constexpr const char* kName = "startend_row_indices";
  if (mask.attn_mask) fail(op, kName, "absent when attn_mask is given", describe(rows) + "; pass one of the two");
  if (q.shape[1] != k.shape[1])
    fail(op, kName, "absent unless q and k have one seq_len",
         describe(rows) + "; q has " + std::to_string(q.shape[1]) + ", k " + std::to_string(k.shape[1]) +
             ". Use attn_mask");
  require_dtype(op, kName, rows, {DType::kInt32});
  require_num_dims(op, kName, rows, 4);
  const bool fits =
      rows.shape[0] == k.shape[0] && (rows.shape[1] == 1 || rows.shape[1] == k.shape[2]) && rows.shape[2] == k.shape[1];
  const int64_t bounds = rows.shape[3];
  if (fits && (bounds == 2 || bounds == (mask.causal ? 1 : 4))) return;
  const std::string size =
      std::to_string(k.shape[0]) + ", 1 or " + std::to_string(k.shape[2]) + ", " + std::to_string(k.shape[1]);
  fail(op, kName, "[" + size + (mask.causal ? ", 1 or 2] (causal)" : ", 2 or 4] (not causal)"), describe(rows));
}

void require_masks(const char* op, const AttentionMask& mask, const Tensor& q, const Tensor& k) {
  require_attn_mask(op, mask.attn_mask, q, k);
  require_startend_row_indices(op, mask, q, k);
}

}  // namespace

void flash_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionMask& mask, float scale,
                     const Tensor& out, const Tensor& lse) {
  constexpr const char* kOp = "flash_attention";
  require_queries_keys_values(kOp, q, k, v);
  require_masks(kOp, mask, q, k);
  require_scale(kOp, scale);
  require_output_like(kOp, "out", out, "q", q);
  if (lse) require_output(kOp, "lse", lse, DType::kFloat32, {q.shape[0], q.shape[2], q.shape[1]});
  FUSIONKIT_DISPATCH(flash_attention, q, k, v, mask, scale, out, lse);
}

void flash_attention_grad(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                          const AttentionMask& mask, float scale, const Tensor& dout, const Tensor& dlse,
                          const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  constexpr const char* kOp = "flash_attention_grad";
  require_queries_keys_values(kOp, q, k, v);
  require_masks(kOp, mask, q, k);
  require_scale(kOp, scale);
  require_like(kOp, "out", out, "q", q);
  require_input(kOp, "lse", lse, {DType::kFloat32}, {q.shape[0], q.shape[2], q.shape[1]});
  require_like(kOp, "dout", dout, "q", q);
  if (dlse) require_input(kOp, "dlse", dlse, {DType::kFloat32}, {q.shape[0], q.shape[2], q.shape[1]});
  require_output_like(kOp, "dq", dq, "q", q);
  require_output_like(kOp, "dk", dk, "k", k);
  require_output_like(kOp, "dv", dv, "v", v);
  FUSIONKIT_DISPATCH(flash_attention_grad, q, k, v, out, lse, mask, scale, dout, dlse, dq, dk, dv);
}

}  // namespace fusionkit_cpu
