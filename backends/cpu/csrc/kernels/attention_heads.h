// The heads of the tensors of one attention call.
#pragma once

#include "flash_attention.h"
#include "kernels/attention_mask.h"
#include "kernels/attention_pack.h"
#include "kernels/attention_schedule.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

// The sizes of a call. A unit is one (batch, kv_head): the heads of its group share packed keys and values.
struct AttentionShape {
  int64_t batch_size, num_queries, num_keys, heads, kv_heads, head_dim;

  AttentionShape(const Tensor& q, const Tensor& k)
      : batch_size(q.shape[0]),
        num_queries(q.shape[1]),
        num_keys(k.shape[1]),
        heads(q.shape[2]),
        kv_heads(k.shape[2]),
        head_dim(q.shape[3]) {}
  int64_t units() const { return batch_size * kv_heads; }
  int64_t group_size() const { return heads / kv_heads; }
};

template <class T>
T* head_data(const Tensor& tensor, int64_t batch, int64_t head) {
  return static_cast<T*>(tensor.data) + batch * tensor.strides[0] + head * tensor.strides[2];
}

template <class T>
StridedRows<T> head_rows(const Tensor& tensor, int64_t batch, int64_t head) {
  return {head_data<T>(tensor, batch, head), tensor.strides[1], tensor.strides[3]};
}

inline float* row_statistics(const Tensor& tensor, int64_t batch, int64_t head) {
  return tensor ? static_cast<float*>(tensor.data) + (batch * tensor.shape[1] + head) * tensor.shape[2] : nullptr;
}

inline KeyIntervals lay_out_intervals(Layout& layout, int count, int64_t num_keys) {
  KeyIntervals intervals;
  intervals.count = count;
  const auto bounds = [&](int64_t chunk) {
    const int64_t chunks = round_up(num_keys, chunk) / chunk;
    const auto take = [&] { return layout.take<int32_t>(chunks); };
    return IntervalBounds{take(), take(), take(), take()};
  };
  for (int i = 0; i < count; ++i) {
    intervals.begin[i] = layout.take<int32_t>(num_keys);
    intervals.end[i] = layout.take<int32_t>(num_keys);
    intervals.panels[i] = bounds(kPanel);
    intervals.vectors[i] = bounds(kLanes);
  }
  return intervals;
}

inline KeyIntervals lay_out_intervals(Layout& layout, const AttentionMask& mask, int64_t num_keys) {
  return lay_out_intervals(layout, !mask.startend_row_indices ? 0 : mask.causal ? 1 : 2, num_keys);
}

inline void read_intervals(const AttentionMask& mask, int64_t batch, int64_t kv_head, int64_t num_keys,
                           KeyIntervals& intervals) {
  const Tensor& rows = mask.startend_row_indices;
  if (!rows) return;
  const int64_t head = rows.shape[1] == 1 ? 0 : kv_head;
  const auto* data = static_cast<const int32_t*>(rows.data) + batch * rows.strides[0] + head * rows.strides[1];
  fill_intervals(data, rows.shape[3], rows.strides[2], rows.strides[3], mask.causal, num_keys, intervals);
}

inline HeadMask head_mask(const AttentionShape& shape, const AttentionMask& mask, int64_t batch, int64_t head,
                          const KeyIntervals& intervals) {
  DenseMask dense;
  if (const Tensor& values = mask.attn_mask) {
    const int64_t offset =
        (values.shape[0] == 1 ? 0 : batch * values.strides[0]) + (values.shape[1] == 1 ? 0 : head * values.strides[1]);
    const auto* data = static_cast<const char*>(values.data) + offset * static_cast<int64_t>(dtype_size(values.dtype));
    dense = {data, values.dtype, values.shape[2] == 1 ? 0 : values.strides[2], values.strides[3]};
  }
  return {shape.num_queries, shape.num_keys, mask.causal, dense, &intervals};
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
