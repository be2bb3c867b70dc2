#include "paged_attention.h"

#include "buffer.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_heads.h"
#include "kernels/attention_in_place.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

struct PagedTensors {
  const Tensor &q, &k, &v, &key_cache, &value_cache, &out;
};

// Of a row: those that are split over parts, those that are packed, and those that the tiles' sums take in.
struct MostKeys {
  int64_t decoded = 0, packed = 0, in_tiles = 0;
};

template <class T>
class PagedAttention {
  using Operand = typename OperandOf<T>::Type;

  struct ThreadScratch {
    PackedHead<Operand> packed;
    ForwardScratch<Operand> block;
    DecodeScratch<Operand> decode;
    InPlaceScratch<T, Operand> in_place;
    KeyIntervals hidden;  // from a query that is a window further on
    ThreadScratch(Layout& layout, const MostKeys& keys, int64_t window, const Depth<Operand>& depth)
        : packed(layout, keys.packed, depth),
          block(layout, depth),
          decode(layout, depth),
          in_place(layout, depth),
          hidden(lay_out_intervals(layout, window > 0 ? 1 : 0, keys.in_tiles)) {}
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
    const MostKeys most = most_keys();
    const DecodeParts parts(units, most.decoded, depth_.columns);
    Layout counted(nullptr);
    ThreadScratch(counted, most, window_, depth_);
    const Buffer buffer(counted.size() * num_shares(units * parts.count(), 1));
    for_each_item(units * parts.count(), [&](int64_t item, int share) {
      Layout layout(buffer.as<char>() + share * counted.size());
      ThreadScratch scratch(layout, most, window_, depth_);
      const int64_t unit = item / parts.count(), part = item % parts.count();
      const StepRow& row = rows_[unit / kv_heads];
      if (decodes(row)) {
        const auto keys = cached_rows(tensors_.key_cache, row, unit % kv_heads);
        const auto values = cached_rows(tensors_.value_cache, row, unit % kv_heads);
        decode(queries_of(row, unit % kv_heads), tensors_.q.strides[2], keys, values,
               parts.keys_of(part, {row.first_key, row.num_keys()}), depth_, scale_, scratch.decode,
               parts.state(unit, part));
      } else if (part == 0) {
        is_in_place(row) ? attend_token(row, unit % kv_heads, scratch) : prefill(row, unit % kv_heads, scratch);
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

  bool is_dense() const { return tensors_.key_cache.strides[3] == 1 && tensors_.value_cache.strides[3] == 1; }
  bool decodes(const StepRow& row) const {
    return !batch_invariant_ && row.num_tokens * group_size() <= kMostDecodeQueries && is_dense();
  }
  bool is_in_place(const StepRow& row) const { return batch_invariant_ && row.num_tokens == 1 && is_dense(); }

  MostKeys most_keys() const {
    MostKeys most;
    const auto raise = [](int64_t& largest, int64_t count) { largest = count > largest ? count : largest; };
    for (const StepRow& row : rows_) {
      raise(decodes(row) ? most.decoded : most.in_tiles, num_packed(row));
      if (!decodes(row) && !is_in_place(row)) raise(most.packed, num_packed(row));
    }
    return most;
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

  // The position of the first key of a row that the sums take in. Batch invariant sums begin at the same positions
  // whichever tokens the step has.
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

  // One token, whose heads are rows of one product, by the tiles' sums.
  void attend_token(const StepRow& row, int64_t kv_head, ThreadScratch& scratch) const {
    const int64_t origin = origin_of(row), count = num_packed(row), first = row.first_key - origin;
    const auto keys = cached_rows(tensors_.key_cache, row, kv_head, origin);
    const auto values = cached_rows(tensors_.value_cache, row, kv_head, origin);
    if (window_ > 0) fill_hidden(first, count, scratch.hidden);
    const HeadMask mask = {group_size(), count, false, {}, &scratch.hidden, batch_invariant_};
    const HeadRows<T> rows = heads_of(row, kv_head);
    for (int64_t begin = 0; begin < group_size(); begin += kQueryBlock) {
      const QueryRange range = {begin, clamp(begin + kQueryBlock, 0, group_size())};
      attend_in_place(rows, range, mask, scale_, keys, values, {first, count}, depth_, scratch.block, scratch.in_place);
    }
  }

  // The heads of a group as rows, of one token.
  HeadRows<T> heads_of(const StepRow& row, int64_t kv_head) const {
    const int64_t head = kv_head * group_size();
    const StridedRows<T> queries = {query_at(row.first_token, head), tensors_.q.strides[1], tensors_.q.strides[2]};
    return {queries, out_at(row.first_token, head), tensors_.out.strides[1], nullptr};
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
    attend(group_size(), heads_of(row, kv_head), mask, values, scratch);
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
  // Every query then takes the tiles' order, packed or in place: decode has another, whose parts depend on rows and
  // threads.
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
