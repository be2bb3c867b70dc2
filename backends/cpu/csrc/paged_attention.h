#pragma once

#include <vector>

#include "kernels/table.h"

// Tokens of this step without padding: q [T, heads, D]; k, v [T, kv_heads, D], T = sum(seq_lens_this_time). Rows b with
// seq_lens_encoder[b] > 0 are in prefill (positions 0..this_time-1), the others in decode (positions decoder[b]...).
// caches [blocks, kv_heads, block_size, D], updated in place, of k's dtype; or of int8 with key_scales and value_scales
// [blocks, kv_heads, block_size] float32, updated too: a code times its token's scale is the number. block_tables [B,
// max_blocks] int32; seq_lens_* [B] int32. batch_invariant: a token's result has the same bits whatever the other rows
// are, and in however many calls its row's tokens come, for finite keys and values. A token attends to its own position
// and the window - 1 before it; window 0: to all before it.
FUSIONKIT_ENTRY_POINTS(void paged_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_cache,
                                            const Tensor& value_cache, const Tensor& block_tables,
                                            const Tensor& seq_lens_encoder, const Tensor& seq_lens_decoder,
                                            const Tensor& seq_lens_this_time, float scale, int64_t window,
                                            const Tensor& out, bool batch_invariant = false,
                                            const Tensor& key_scales = {}, const Tensor& value_scales = {});)

namespace fusionkit_cpu {

// The tokens of one row of the batch in this step, and the blocks that hold its keys. What was checked is what is used:
// the kernels never see the tensors that these numbers were read from.
// Keys before first_key are outside of every token's window: nobody reads them, or what `blocks` says of them.
struct StepRow {
  int64_t first_token, num_tokens, first_position, first_key;
  std::vector<int32_t> blocks;
  int64_t num_keys() const { return first_position + num_tokens; }
};

}  // namespace fusionkit_cpu

FUSIONKIT_KERNELS(paged_attention,
                  void paged_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_cache,
                                       const Tensor& value_cache, const Tensor& key_scales, const Tensor& value_scales,
                                       const std::vector<StepRow>& rows, float scale, int64_t window,
                                       bool batch_invariant, const Tensor& out);)
