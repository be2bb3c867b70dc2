// The attention kernels, once per instruction set. Arguments were checked by dispatch_attention.cc.
#pragma once

#include "fusionkit_cpu.h"
#include "kernels/table.h"

FUSIONKIT_FOR_EACH_ISA(void flash_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const AttentionMask& mask, float scale, const Tensor& out,
                                            const Tensor& lse);
                       void flash_attention_grad(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                                 const Tensor& lse, const AttentionMask& mask, float scale,
                                                 const Tensor& dout, const Tensor& dlse, const Tensor& dq,
                                                 const Tensor& dk, const Tensor& dv);
                       void paged_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_cache,
                                            const Tensor& value_cache, const Tensor& block_tables,
                                            const Tensor& seq_lens_encoder, const Tensor& seq_lens_decoder,
                                            const Tensor& seq_lens_this_time, float scale, const Tensor& out);)
