#include "flash_attention.h"

#include "buffer.h"
#include "kernels/attention_decode.h"
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
    [[maybe_unused]] const MatrixUnit::Region region;
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
      attend_block(rows, queries, head_mask(shape, mask, batch, head, scratch.intervals), scale, scratch.packed,
                   head_rows<T>(v, batch, kv_head), depth, scratch.block);
    }
  });
}

// Whether a group's queries are few enough to read the keys where they lie.
bool decodes(const AttentionShape& shape, const Tensor& k, const Tensor& v, const AttentionMask& mask) {
  return shape.num_queries * shape.group_size() <= kMostDecodeQueries && !mask.attn_mask &&
         !mask.startend_row_indices && k.strides[3] == 1 && v.strides[3] == 1;
}

template <class T>
DecodeQueries<T> group_queries(const AttentionShape& shape, const Tensor& q, bool causal, const Tensor& out,
                               const Tensor& lse, int64_t batch, int64_t kv_head) {
  const KeyIntervals no_intervals;
  const HeadMask mask = {shape.num_queries, shape.num_keys, causal, {}, &no_intervals};
  DecodeQueries<T> queries;
  for (int64_t i = 0; i < shape.group_size(); ++i) {
    const int64_t head = kv_head * shape.group_size() + i;
    float* statistics = row_statistics(lse, batch, head);
    for (int64_t query = 0; query < shape.num_queries; ++query) {
      queries.add({head_rows<T>(q, batch, head)[query], head_data<T>(out, batch, head) + query * out.strides[1],
                   statistics == nullptr ? nullptr : statistics + query, mask.visible(query)});
    }
  }
  return queries;
}

template <class T>
void attend_few(const Tensor& q, const Tensor& k, const Tensor& v, bool causal, float scale, const Tensor& out,
                const Tensor& lse) {
  using Operand = typename OperandOf<T>::Type;
  const AttentionShape shape(q, k);
  const Depth<Operand> depth(shape.head_dim);
  const DecodeParts parts(shape.units(), shape.num_keys, depth.columns);
  const auto queries_of = [&](int64_t unit) {
    return group_queries<T>(shape, q, causal, out, lse, unit / shape.kv_heads, unit % shape.kv_heads);
  };
  Layout counted(nullptr);
  DecodeScratch<Operand>(counted, depth);
  const Buffer buffer(counted.size() * num_shares(shape.units() * parts.count(), 1));
  for_each_item(shape.units() * parts.count(), [&](int64_t item, int share) {
    Layout layout(buffer.as<char>() + share * counted.size());
    const DecodeScratch<Operand> scratch(layout, depth);
    const int64_t unit = item / parts.count(), part = item % parts.count();
    const int64_t batch = unit / shape.kv_heads, kv_head = unit % shape.kv_heads;
    decode(queries_of(unit), q.strides[3], head_rows<T>(k, batch, kv_head), head_rows<T>(v, batch, kv_head),
           parts.keys_of(part, {0, shape.num_keys}), depth, scale, scratch, parts.state(unit, part));
  });
  for_each_item(shape.units(),
                [&](int64_t unit, int) { finish_decode<T, Operand>(queries_of(unit), parts, unit, depth.size); });
}

}  // namespace

#if defined(FUSIONKIT_LIKE)

// What the unit does not multiply is for the target that this one is like, and so are few queries.
void flash_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionMask& mask, float scale,
                     const Tensor& out, const Tensor& lse) {
  const bool done = !decodes(AttentionShape(q, k), k, v, mask) && visit_multiplied(q.dtype, [&](auto* type) {
    attend<std::remove_pointer_t<decltype(type)>>(q, k, v, mask, scale, out, lse);
  });
  if (!done) FUSIONKIT_LIKE::flash_attention(q, k, v, mask, scale, out, lse);
}

#else

void flash_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionMask& mask, float scale,
                     const Tensor& out, const Tensor& lse) {
  const bool few = decodes(AttentionShape(q, k), k, v, mask);
  visit_floating(q.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (few) {
      attend_few<T>(q, k, v, mask.causal, scale, out, lse);
    } else {
      attend<T>(q, k, v, mask, scale, out, lse);
    }
  });
}

#endif

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
