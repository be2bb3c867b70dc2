#include "paged_attention.h"

#include "buffer.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_heads.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

struct PagedTensors {
  const Tensor &q, &k, &v, &key_cache, &value_cache, &out;
};

template <class T>
class PagedAttention {
  using Operand = typename OperandOf<T>::Type;

  struct ThreadScratch {
    PackedHead<Operand> packed;
    ForwardScratch<Operand> block;
    DecodeScratch<Operand> decode;
    KeyIntervals hidden;  // from a query that is a window further on
    ThreadScratch(Layout& layout, int64_t num_keys, int64_t window, const Depth<Operand>& depth)
        : packed(layout, num_keys, depth),
          block(layout, depth),
          decode(layout, depth),
          hidden(lay_out_intervals(layout, window > 0 ? 1 : 0, num_keys)) {}
  };

 public:
  PagedAttention(const PagedTensors& tensors, const std::vector<StepRow>& rows, float scale, int64_t window,
                 bool batch_invariant)
      : tensors_(tensors),
        rows_(rows),
        scale_(scale),
        window_(window),
        batch_invariant_(batch_invariant),
        depth_(tensors.q.shape[2]) {}

  void run() const {
    const int64_t kv_heads = tensors_.k.shape[1], units = static_cast<int64_t>(rows_.size()) * kv_heads;
    for_each_item(units, [&](int64_t unit, int) {
      const StepRow& row = rows_[unit / kv_heads];
      append(tensors_.k, row, unit % kv_heads, cached_rows(tensors_.key_cache, row, unit % kv_heads));
      append(tensors_.v, row, unit % kv_heads, cached_rows(tensors_.value_cache, row, unit % kv_heads));
    });
    int64_t longest = 0, longest_packed = 0;
    for (const StepRow& row : rows_) {
      int64_t& most = decodes(row) ? longest : longest_packed;
      if (num_packed(row) > most) most = num_packed(row);
    }
    const DecodeParts parts(units, longest, depth_.columns);
    Layout counted(nullptr);
    ThreadScratch(counted, longest_packed, window_, depth_);
    const Buffer buffer(counted.size() * num_shares(units * parts.count(), 1));
    for_each_item(units * parts.count(), [&](int64_t item, int share) {
      Layout layout(buffer.as<char>() + share * counted.size());
      ThreadScratch scratch(layout, longest_packed, window_, depth_);
      const int64_t unit = item / parts.count(), part = item % parts.count();
      const StepRow& row = rows_[unit / kv_heads];
      if (decodes(row)) {
        const auto keys = cached_rows(tensors_.key_cache, row, unit % kv_heads);
        const auto values = cached_rows(tensors_.value_cache, row, unit % kv_heads);
        decode(queries_of(row, unit % kv_heads), tensors_.q.strides[2], keys, values,
               parts.keys_of(part, {row.first_key, row.num_keys()}), depth_, scale_, scratch.decode,
               parts.state(unit, part));
      } else if (part == 0) {
        prefill(row, unit % kv_heads, scratch);
      }
    });
    for_each_item(units, [&](int64_t unit, int) {
      const StepRow& row = rows_[unit / kv_heads];
      if (decodes(row)) finish_decode<T, Operand>(queries_of(row, unit % kv_heads), parts, unit, depth_.size);
    });
  }

 private:
  PagedRows<T> cached_rows(const Tensor& cache, const StepRow& row, int64_t kv_head, int64_t first = 0) const {
    return {static_cast<T*>(cache.data) + kv_head * cache.strides[1],
            row.blocks.data(),
            cache.strides[0],
            cache.shape[2],
            cache.strides[2],
            cache.strides[3],
            first};
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
    return !batch_invariant_ && row.num_tokens * group_size() <= kMostDecodeQueries &&
           tensors_.key_cache.strides[3] == 1 && tensors_.value_cache.strides[3] == 1;
  }

  DecodeQueries<T> queries_of(const StepRow& row, int64_t kv_head) const {
    DecodeQueries<T> queries;
    for (int64_t i = 0; i < row.num_tokens; ++i) {
      for (int64_t head = kv_head * group_size(); head < (kv_head + 1) * group_size(); ++head) {
        const int64_t token = row.first_token + i, seen = row.first_position + i + 1;
        const int64_t first_key = window_ > 0 && seen > window_ ? seen - window_ : 0;
        queries.add({query_at(token, head), out_at(token, head), nullptr, seen, first_key});
      }
    }
    return queries;
  }

  // The position of the first key of a row that is packed. Batch invariant sums begin at the same positions whichever
  // tokens the step has.
  int64_t origin_of(const StepRow& row) const {
    return batch_invariant_ ? row.first_key - row.first_key % kKeyBlock : row.first_key;
  }
  int64_t num_packed(const StepRow& row) const { return row.num_keys() - origin_of(row); }

  void prefill(const StepRow& row, int64_t kv_head, ThreadScratch& scratch) const {
    const int64_t origin = origin_of(row), count = num_packed(row), first = row.first_key - origin;
    const auto keys = cached_rows(tensors_.key_cache, row, kv_head, origin);
    const auto values = cached_rows(tensors_.value_cache, row, kv_head, origin);
    typename Operand::Group* none = nullptr;
    pack_rows(keys, count, depth_, scratch.block.staged, scratch.packed.keys, none, 0, first);
    pack_rows(values, count, depth_, scratch.block.staged, none, scratch.packed.values,
              scratch.packed.values_panel_stride, first);
    if (window_ > 0) fill_window(window_, row.first_position - origin, count, scratch.hidden);
    if (row.num_tokens == 1 && window_ == 0)
      attend_heads(row, kv_head, values, scratch);
    else
      attend_tokens(row, kv_head, values, scratch);
  }

  void attend_tokens(const StepRow& row, int64_t kv_head, const PagedRows<T>& values,
                     const ThreadScratch& scratch) const {
    const HeadMask mask = {row.num_tokens, num_packed(row), true, {}, &scratch.hidden, batch_invariant_};
    for (int64_t head = kv_head * group_size(); head < (kv_head + 1) * group_size(); ++head) {
      const Tensor& q = tensors_.q;
      const StridedRows<T> queries = {query_at(row.first_token, head), q.strides[0], q.strides[2]};
      attend(row.num_tokens, {queries, out_at(row.first_token, head), tensors_.out.strides[0], nullptr}, mask, values,
             scratch);
    }
  }

  // One token sees all keys: its heads are rows of one product.
  void attend_heads(const StepRow& row, int64_t kv_head, const PagedRows<T>& values,
                    const ThreadScratch& scratch) const {
    const HeadMask mask = {group_size(), num_packed(row), false, {}, &scratch.hidden, batch_invariant_};
    const Tensor& q = tensors_.q;
    const int64_t head = kv_head * group_size();
    const StridedRows<T> queries = {query_at(row.first_token, head), q.strides[1], q.strides[2]};
    attend(group_size(), {queries, out_at(row.first_token, head), tensors_.out.strides[1], nullptr}, mask, values,
           scratch);
  }

  void attend(int64_t num_queries, const HeadRows<T>& rows, const HeadMask& mask, const PagedRows<T>& values,
              const ThreadScratch& scratch) const {
    for (int64_t begin = 0; begin < num_queries; begin += kQueryBlock) {
      const QueryRange range = {begin, clamp(begin + kQueryBlock, 0, num_queries)};
      attend_block(rows, range, mask, scale_, scratch.packed, values, depth_, scratch.block);
    }
  }

  const PagedTensors& tensors_;
  const std::vector<StepRow>& rows_;
  const float scale_;
  const int64_t window_;  // 0: none
  // Every query then takes the tiles' order, for decode has another, and its parts depend on rows and threads.
  const bool batch_invariant_;
  const Depth<Operand> depth_;
};

}  // namespace

void paged_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_cache,
                     const Tensor& value_cache, const std::vector<StepRow>& rows, float scale, int64_t window,
                     bool batch_invariant, const Tensor& out) {
  const PagedTensors tensors = {q, k, v, key_cache, value_cache, out};
  visit_floating(q.dtype, [&](auto* type) {
    PagedAttention<std::remove_pointer_t<decltype(type)>>(tensors, rows, scale, window, batch_invariant).run();
  });
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
