// One call of flash_attention_npu, held against its contract.
#pragma once

#include "contract/attention.h"
#include "ops/operand.h"

namespace fusionkit_emulator::ops {

struct FlashAttentionFlags {
  float dropout;  // the forward pass ignores it; what the backward pass drops is not specified
  bool causal, is_test, is_triangle_upper_mask;
  bool unnamed;  // an argument of the 13-argument form is used of which the contract does not say what it does
};

// Checked when it is made; then for the stream.
struct FlashAttentionCall {
  FlashAttentionCall(const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& attn_mask,
                     const FlashAttentionFlags& flags);

  // out like q; softmax_max, softmax_sum: [batch_size, num_heads, q_len, 8] float32.
  void forward(const Operand& out, const Operand& softmax_max, const Operand& softmax_sum) const;
  void backward(const Operand& dout, const Operand& dq, const Operand& dk, const Operand& dv) const;

 private:
  std::unique_ptr<bool[]> dropped() const;

  Attention shape_;
  Operand q_, k_, v_, mask_;
  FlashAttentionFlags flags_;
};

}  // namespace fusionkit_emulator::ops
