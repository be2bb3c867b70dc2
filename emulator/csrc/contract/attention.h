// What flash_attention_npu and fused_sdp_flash_attention_gcu compute, on float32 tensors in host memory.
//
// A row whose keys are all dropped gives NaN, forward and backward: the contracts say nothing of it.
#pragma once

#include <cstdint>

namespace fusionkit_emulator {

struct Attention {
  int64_t batch_size, q_len, kv_len, num_heads, num_key_value_heads, head_dim;
  float scale;
  bool causal = false;            // for q_len == kv_len only; else std::invalid_argument
  const bool* dropped = nullptr;  // [mask_batches, 1, q_len, kv_len], True = drop
  const float* added = nullptr;   // the same shape, added to the scaled scores
  int64_t mask_batches = 1;       // batch_size, or 1 for all
};

constexpr int64_t kStatistics = 8;  // the device holds each row's statistic this often

// q, out: [B, q_len, N, D]; k, v: [B, kv_len, kv heads, D]. softmax_max, softmax_sum: [B, N, q_len, 8], or null.
void attention(const Attention& call, const float* q, const float* k, const float* v, float* out, float* softmax_max,
               float* softmax_sum);

// The gradients of q, k and v, all written whole. The probabilities are computed again.
void attention_grad(const Attention& call, const float* q, const float* k, const float* v, const float* dout, float* dq,
                    float* dk, float* dv);

}  // namespace fusionkit_emulator
