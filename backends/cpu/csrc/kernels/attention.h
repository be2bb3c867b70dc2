// The attention kernels, once per instruction set. Arguments were checked by dispatch_attention.cc and
// dispatch_paged_attention.cc.
#pragma once

#include <vector>

#include "fusionkit_cpu.h"
#include "kernels/table.h"

namespace fusionkit_cpu {

// The tokens of one row of the batch in this step, and the blocks that hold its keys. What was checked is what is used:
// the kernels never see the tensors that these numbers were read from.
struct StepRow {
  int64_t first_token, num_tokens, first_position;
  std::vector<int32_t> blocks;
  int64_t num_keys() const { return first_position + num_tokens; }
};

}  // namespace fusionkit_cpu

FUSIONKIT_FOR_EACH_ISA(
    void flash_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionMask& mask, float scale,
                         const Tensor& out, const Tensor& lse);
    void flash_attention_grad(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                              const AttentionMask& mask, float scale, const Tensor& dout, const Tensor& dlse,
                              const Tensor& dq, const Tensor& dk, const Tensor& dv);
    void paged_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_cache,
                         const Tensor& value_cache, const std::vector<StepRow>& rows, float scale, const Tensor& out);)
