#pragma once

#include "kernels/table.h"

// q [B, Sq, heads, D]; k, v [B, Skv, kv_heads, D]; heads a multiple of kv_heads; out as q; lse [B, heads, Sq] float32.
// causal is aligned bottom-right: query i sees keys j <= i + Skv - Sq.
// attn_mask [B or 1, heads or 1, Sq, Skv], optional: bool (true = attend) or floating (added to the scaled scores; only
// -inf drops). startend_row_indices [B, kv_heads or 1, Skv, 1 | 2 | 4] int32, optional, as Paddle's
// flashmask_attention. A row with nothing to attend to gives zeros, lse = -inf and zero gradients. out and lse are
// exact to one rounding.

namespace fusionkit_cpu {

struct AttentionMask {
  bool causal = false;
  Tensor attn_mask;
  Tensor startend_row_indices;
};

}  // namespace fusionkit_cpu

// dlse [B, heads, Sq] float32 may be absent (zero).
#define FUSIONKIT_FLASH_ATTENTION                                                                                 \
  void flash_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionMask& mask, float scale, \
                       const Tensor& out, const Tensor& lse);
#define FUSIONKIT_FLASH_ATTENTION_GRAD                                                                               \
  void flash_attention_grad(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse, \
                            const AttentionMask& mask, float scale, const Tensor& dout, const Tensor& dlse,          \
                            const Tensor& dq, const Tensor& dk, const Tensor& dv);

FUSIONKIT_ENTRY_POINTS(FUSIONKIT_FLASH_ATTENTION FUSIONKIT_FLASH_ATTENTION_GRAD)
FUSIONKIT_KERNELS(flash_attention, FUSIONKIT_FLASH_ATTENTION)
FUSIONKIT_KERNELS(flash_attention_grad, FUSIONKIT_FLASH_ATTENTION_GRAD)
