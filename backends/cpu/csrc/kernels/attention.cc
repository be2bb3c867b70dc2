#include "kernels/attention.h"

#include "buffer.h"
#include "kernels/attention_forward.h"
#include "kernels/attention_heads.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

template <class Operand>
struct ThreadScratch {
  PackedHead<Operand> packed;
  ForwardScratch<Operand> block;
  KeyIntervals intervals;

  ThreadScratch(Layout& layout, const AttentionShape& shape, const AttentionMask& mask, const Depth<Operand>& depth)
      : packed(layout, shape.num_keys, depth),
        block(layout, depth),
        intervals(lay_out_intervals(layout, mask, shape.num_keys)) {}
};

// A unit is split when there are too few for the threads; every part then packs the keys and values for itself.
int64_t parts_per_unit(int64_t units, int64_t blocks) {
  const int64_t wanted = 4 * num_threads();
  return units == 0 || units >= wanted ? 1 : clamp(round_up(wanted, units) / units, 1, blocks);
}

template <class T>
void attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionMask& mask, float scale,
            const Tensor& out, const Tensor& lse) {
  using Operand = typename OperandOf<T>::Type;
  const AttentionShape shape(q, k);
  const Depth<Operand> depth(shape.head_dim);
  const int64_t blocks_per_head = round_up(shape.num_queries, kQueryBlock) / kQueryBlock;
  const int64_t blocks = shape.group_size() * blocks_per_head;
  if (blocks == 0) return;
  const int64_t parts = parts_per_unit(shape.units(), blocks), items = shape.units() * parts;

  Layout counted(nullptr);
  ThreadScratch<Operand>(counted, shape, mask, depth);
  const Buffer buffer(counted.size() * num_shares(items, 1));
  for_each_item(items, [&](int64_t item, int share) {
    Layout layout(buffer.as<char>() + share * counted.size());
    ThreadScratch<Operand> scratch(layout, shape, mask, depth);
    const int64_t batch = item / parts / shape.kv_heads, kv_head = item / parts % shape.kv_heads;
    read_intervals(mask, batch, kv_head, shape.num_keys, scratch.intervals);
    pack_rows(head_rows<T>(k, batch, kv_head), shape.num_keys, depth, scratch.block.staged, scratch.packed.keys,
              static_cast<typename Operand::Group*>(nullptr), 0);
    pack_rows(head_rows<T>(v, batch, kv_head), shape.num_keys, depth, scratch.block.staged,
              static_cast<typename Operand::Group*>(nullptr), scratch.packed.values,
              scratch.packed.values_panel_stride);
    for (int64_t block = item % parts; block < blocks; block += parts) {
      const int64_t head = kv_head * shape.group_size() + block / blocks_per_head;
      const int64_t begin = block % blocks_per_head * kQueryBlock;
      const QueryRange queries = {begin, clamp(begin + kQueryBlock, 0, shape.num_queries)};
      const HeadRows<T> rows = {head_rows<T>(q, batch, head), head_data<T>(out, batch, head), out.strides[1],
                                row_statistics(lse, batch, head)};
      attend_block(rows, queries, head_mask(shape, mask, batch, head, scratch.intervals), scale, scratch.packed, depth,
                   scratch.block);
    }
  });
}

}  // namespace

void flash_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionMask& mask, float scale,
                     const Tensor& out, const Tensor& lse) {
  visit_floating(q.dtype,
                 [&](auto* type) { attend<std::remove_pointer_t<decltype(type)>>(q, k, v, mask, scale, out, lse); });
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
