#include "ops/npu/flash_attention_call.h"

#include <algorithm>
#include <cmath>

#include "ops/limits.h"

namespace fusionkit_emulator::ops {
namespace {

Attention check(const Tensor& q, const Tensor& k, const Tensor& v) {
  const Limits limits("flash_attention_npu");
  for (const auto& [name, tensor] : {std::pair("query", q), std::pair("key", k), std::pair("value", v)}) {
    limits.tensor(name, tensor);
    limits.dtype(name, tensor, {DataType::FLOAT16, DataType::BFLOAT16});
    limits.same_dtype(name, tensor, "query", q);
    limits.num_dims(name, tensor, 4, "[batch_size, seq_len, num_heads, head_dim]");
  }
  const Shape query = q.shape(), key = k.shape();
  limits.shape("key", k, {query[0], key[1], key[2], query[3]}, "[batch_size, kv_len, num_key_value_heads, head_dim]");
  limits.shape("value", v, key, "as key");
  limits.require(key[2] > 0 && query[2] % key[2] == 0, "num_heads",
                 "a multiple of num_key_value_heads = " + std::to_string(key[2]), std::to_string(query[2]));
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(query[3])));
  return {query[0], query[1], key[1], query[2], key[2], query[3], scale};
}

void check_mask(const Tensor& mask, Attention* shape) {
  const Limits limits("flash_attention_npu");
  limits.tensor("attn_mask", mask);
  limits.dtype("attn_mask", mask, {DataType::BOOL});
  limits.num_dims("attn_mask", mask, 4, "[batch_size or 1, 1, q_len, kv_len]");
  shape->mask_batches = mask.shape()[0] == 1 ? 1 : shape->batch_size;
  limits.shape("attn_mask", mask, {shape->mask_batches, 1, shape->q_len, shape->kv_len},
               "[batch_size or 1, 1, q_len, kv_len]");
}

}  // namespace

FlashAttentionCall::FlashAttentionCall(const Tensor& query, const Tensor& key, const Tensor& value,
                                       const OptionalTensor& attn_mask, const FlashAttentionFlags& flags)
    : shape_(check(query, key, value)), q_(query), k_(key), v_(value), flags_(flags) {
  if (attn_mask) {
    check_mask(*attn_mask, &shape_);
    mask_ = Operand(*attn_mask);
    flags_.unnamed |= flags.causal;  // whether both masks count is not said
  }
  shape_.causal = flags.causal;
  Limits("flash_attention_npu")
      .require(!flags.causal || shape_.q_len == shape_.kv_len, "kv_len",
               "q_len = " + std::to_string(shape_.q_len) + " under causal, whose mask is square",
               std::to_string(shape_.kv_len));
}

// is_triangle_upper_mask promises that no key past the diagonal is kept: the device does not look there. A row that
// breaks the promise is dropped whole, which gives NaN.
std::unique_ptr<bool[]> FlashAttentionCall::dropped() const {
  std::unique_ptr<bool[]> mask = mask_.bools();
  if (!flags_.is_triangle_upper_mask) return mask;
  for (int64_t row = 0; row < shape_.mask_batches * shape_.q_len; ++row) {
    bool* keys = mask.get() + row * shape_.kv_len;
    const int64_t visible = std::min(row % shape_.q_len + 1, shape_.kv_len);
    const bool kept = std::any_of(keys + visible, keys + shape_.kv_len, [](bool drop) { return !drop; });
    if (kept || shape_.q_len != shape_.kv_len) std::fill_n(keys, shape_.kv_len, true);
  }
  return mask;
}

void FlashAttentionCall::forward(const Operand& out, const Operand& softmax_max, const Operand& softmax_sum) const {
  if (flags_.unnamed) {
    for (const Operand& each : {out, softmax_max, softmax_sum}) each.store_nan();
    return;
  }
  const std::unique_ptr<bool[]> mask = mask_.storage == nullptr ? nullptr : dropped();
  Attention call = shape_;
  call.dropped = mask.get();
  std::vector<float> values(out.size), max(softmax_max.size), sum(softmax_sum.size);
  attention(call, q_.floats().data(), k_.floats().data(), v_.floats().data(), values.data(), max.data(), sum.data());
  out.store(values);
  softmax_max.store(max);
  softmax_sum.store(sum);
}

void FlashAttentionCall::backward(const Operand& dout, const Operand& dq, const Operand& dk, const Operand& dv) const {
  if (flags_.unnamed || (flags_.dropout > 0 && !flags_.is_test)) {
    for (const Operand& each : {dq, dk, dv}) each.store_nan();
    return;
  }
  const std::unique_ptr<bool[]> mask = mask_.storage == nullptr ? nullptr : dropped();
  Attention call = shape_;
  call.dropped = mask.get();
  std::vector<float> dq_values(dq.size), dk_values(dk.size), dv_values(dv.size);
  attention_grad(call, q_.floats().data(), k_.floats().data(), v_.floats().data(), dout.floats().data(),
                 dq_values.data(), dk_values.data(), dv_values.data());
  dq.store(dq_values);
  dk.store(dk_values);
  dv.store(dv_values);
}

}  // namespace fusionkit_emulator::ops
