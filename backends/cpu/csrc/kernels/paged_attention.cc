#include "buffer.h"
#include "kernels/attention.h"
#include "kernels/attention_decode.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

// The tokens of one row of the batch in this step.
struct StepRow {
  int64_t first_token, num_tokens, first_position;
  bool prefill;
  int64_t num_keys() const { return first_position + num_tokens; }
};

struct PagedTensors {
  const Tensor &q, &k, &v, &key_cache, &value_cache, &block_tables, &encoder, &decoder, &this_time, &out;
};

int64_t length_at(const Tensor& lengths, int64_t row) {
  return static_cast<const int32_t*>(lengths.data)[row * lengths.strides[0]];
}

template <class T>
class PagedAttention {
  using Operand = typename OperandOf<T>::Type;

  struct ThreadScratch {
    PackedHead<Operand> packed;
    ForwardScratch<Operand> block;
    DecodeScratch<Operand> decode;
    ThreadScratch(Layout& layout, int64_t num_keys, const Depth<Operand>& depth)
        : packed(layout, num_keys, depth), block(layout, depth), decode(layout, depth) {}
  };

 public:
  PagedAttention(const PagedTensors& tensors, float scale)
      : tensors_(tensors), scale_(scale), depth_(tensors.q.shape[2]) {}

  void run() const {
    const int64_t batch_size = tensors_.this_time.shape[0], kv_heads = tensors_.k.shape[1];
    const Buffer row_buffer(batch_size * sizeof(StepRow));
    StepRow* rows = row_buffer.as<StepRow>();
    int64_t token = 0, longest = 0;
    for (int64_t b = 0; b < batch_size; ++b) {
      const bool prefill = length_at(tensors_.encoder, b) > 0;
      rows[b] = {token, length_at(tensors_.this_time, b), prefill ? 0 : length_at(tensors_.decoder, b), prefill};
      token += rows[b].num_tokens;
      if (rows[b].num_tokens > 0 && rows[b].num_keys() > longest) longest = rows[b].num_keys();
    }
    const int64_t items = batch_size * kv_heads;
    for_each_item(items, [&](int64_t item, int) {
      const StepRow& row = rows[item / kv_heads];
      append(tensors_.k, row, item % kv_heads, cached_rows(tensors_.key_cache, item / kv_heads, item % kv_heads));
      append(tensors_.v, row, item % kv_heads, cached_rows(tensors_.value_cache, item / kv_heads, item % kv_heads));
    });
    DecodeParts parts(items, longest, depth_.columns);
    Layout counted(nullptr);
    ThreadScratch(counted, packs(rows, batch_size) ? longest : 0, depth_);
    const Buffer buffer(counted.size() * num_shares(items * parts.count(), 1));
    for_each_item(items * parts.count(), [&](int64_t item, int share) {
      Layout layout(buffer.as<char>() + share * counted.size());
      ThreadScratch scratch(layout, packs(rows, batch_size) ? longest : 0, depth_);
      const int64_t unit = item / parts.count(), part = item % parts.count();
      const StepRow& row = rows[unit / kv_heads];
      if (row.num_tokens == 0) return;
      const auto keys = cached_rows(tensors_.key_cache, unit / kv_heads, unit % kv_heads);
      const auto values = cached_rows(tensors_.value_cache, unit / kv_heads, unit % kv_heads);
      if (decodes(row)) {
        decode(queries_of(row, unit % kv_heads), tensors_.q.strides[2], keys, values,
               parts.keys_of(part, row.num_keys()), depth_, scale_, scratch.decode, parts.state(unit, part));
      } else if (part == 0) {
        prefill(row, unit % kv_heads, keys, values, scratch);
      }
    });
    for_each_item(items, [&](int64_t item, int) {
      const StepRow& row = rows[item / kv_heads];
      if (row.num_tokens == 0 || !decodes(row)) return;
      finish_decode<T, Operand>(queries_of(row, item % kv_heads), parts, item, depth_.size);
    });
  }

 private:
  PagedRows<T> cached_rows(const Tensor& cache, int64_t b, int64_t kv_head) const {
    const Tensor& tables = tensors_.block_tables;
    return {static_cast<T*>(cache.data) + kv_head * cache.strides[1],
            static_cast<const int32_t*>(tables.data) + b * tables.strides[0],
            cache.strides[0],
            cache.shape[2],
            cache.strides[2],
            cache.strides[3]};
  }

  // The step's keys or values of one head go to their positions in the cache.
  void append(const Tensor& step, const StepRow& row, int64_t kv_head, const PagedRows<T>& cached) const {
    const T* from = static_cast<const T*>(step.data) + kv_head * step.strides[1];
    for (int64_t i = 0; i < row.num_tokens; ++i) {
      const T* token = from + (row.first_token + i) * step.strides[0];
      T* to = const_cast<T*>(cached[row.first_position + i]);
      for (int64_t d = 0; d < depth_.size; ++d) to[d * cached.column_stride] = token[d * step.strides[2]];
    }
  }

  int64_t group_size() const { return tensors_.q.shape[1] / tensors_.k.shape[1]; }
  const T* query_at(int64_t token, int64_t head) const {
    return static_cast<const T*>(tensors_.q.data) + token * tensors_.q.strides[0] + head * tensors_.q.strides[1];
  }
  T* out_at(int64_t token, int64_t head) const {
    return static_cast<T*>(tensors_.out.data) + token * tensors_.out.strides[0] + head * tensors_.out.strides[1];
  }

  bool decodes(const StepRow& row) const {
    return row.num_tokens * group_size() <= kMostDecodeQueries && tensors_.key_cache.strides[3] == 1 &&
           tensors_.value_cache.strides[3] == 1;
  }
  bool packs(const StepRow* rows, int64_t batch_size) const {
    for (int64_t b = 0; b < batch_size; ++b)
      if (!decodes(rows[b])) return true;
    return false;
  }

  DecodeQueries<T> queries_of(const StepRow& row, int64_t kv_head) const {
    DecodeQueries<T> queries;
    for (int64_t i = 0; i < row.num_tokens; ++i) {
      for (int64_t head = kv_head * group_size(); head < (kv_head + 1) * group_size(); ++head) {
        const int64_t token = row.first_token + i;
        queries.add({query_at(token, head), out_at(token, head), nullptr, row.first_position + i + 1});
      }
    }
    return queries;
  }

  void prefill(const StepRow& row, int64_t kv_head, const PagedRows<T>& keys, const PagedRows<T>& values,
               const ThreadScratch& scratch) const {
    typename Operand::Group* none = nullptr;
    pack_rows(keys, row.num_keys(), depth_, scratch.block.staged, scratch.packed.keys, none, 0);
    pack_rows(values, row.num_keys(), depth_, scratch.block.staged, none, scratch.packed.values,
              scratch.packed.values_panel_stride);
    attend(row, kv_head, scratch);
  }

  void attend(const StepRow& row, int64_t kv_head, const ThreadScratch& scratch) const {
    const KeyIntervals no_intervals;
    const HeadMask mask = {row.num_tokens, row.num_keys(), true, {}, &no_intervals};
    for (int64_t head = kv_head * group_size(); head < (kv_head + 1) * group_size(); ++head) {
      const Tensor& q = tensors_.q;
      const StridedRows<T> queries = {query_at(row.first_token, head), q.strides[0], q.strides[2]};
      const HeadRows<T> rows = {queries, out_at(row.first_token, head), tensors_.out.strides[0], nullptr};
      for (int64_t begin = 0; begin < row.num_tokens; begin += kQueryBlock) {
        const QueryRange range = {begin, clamp(begin + kQueryBlock, 0, row.num_tokens)};
        attend_block(rows, range, mask, scale_, scratch.packed, depth_, scratch.block);
      }
    }
  }

  const PagedTensors& tensors_;
  const float scale_;
  const Depth<Operand> depth_;
};

}  // namespace

void paged_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_cache,
                     const Tensor& value_cache, const Tensor& block_tables, const Tensor& seq_lens_encoder,
                     const Tensor& seq_lens_decoder, const Tensor& seq_lens_this_time, float scale, const Tensor& out) {
  const PagedTensors tensors = {
      q, k, v, key_cache, value_cache, block_tables, seq_lens_encoder, seq_lens_decoder, seq_lens_this_time, out};
  visit_floating(q.dtype,
                 [&](auto* type) { PagedAttention<std::remove_pointer_t<decltype(type)>>(tensors, scale).run(); });
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
