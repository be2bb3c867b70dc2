#include "paged_attention.h"

#include "buffer.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_heads.h"
#include "kernels/attention_in_place.h"
#include "kernels/quantized_row.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

struct PagedTensors {
  const Tensor &q, &k, &v, &key_cache, &value_cache, &key_scales, &value_scales, &out;
};

// Of one head's tokens, its keys and its values.
struct ScaleScratch {
  float *keys, *values;
  ScaleScratch(Layout& layout, int64_t count) : keys(layout.take<float>(count)), values(layout.take<float>(count)) {}
};

// to[i] = the scale of row i of those that are seen; 0 for the others, up to `count` rows.
inline const float* fill_scales(const CodedRows& rows, KeyRange seen, int64_t count, float* to) {
  for (int64_t i = 0; i < seen.begin; ++i) to[i] = 0;
  copy_scales(rows, seen.begin, seen.end, to + seen.begin);
  for (int64_t i = seen.end; i < count; ++i) to[i] = 0;
  return to;
}

// Of a row: those that are split over parts, those that are packed, and those that the tiles' sums take in.
struct MostKeys {
  int64_t decoded = 0, packed = 0, in_tiles = 0;
};

// Of tokens in T and caches of Element: T, or codes with scales.
template <class T, class Element>
class PagedAttention {
  using Operand = typename OperandOf<T>::Type;
  static constexpr bool kHasScales = std::is_same_v<Element, Code>;
  using CachedRows = std::conditional_t<kHasScales, CodedRows, PagedRows<Element>>;

  struct ThreadScratch {
    PackedHead<Operand> packed;
    ForwardScratch<Operand> block;
    DecodeScratch<Operand> decode;
    InPlaceScratch<Element, Operand> in_place;
    ScaleScratch scales;
    KeyIntervals hidden;  // from a query that is a window further on
    ThreadScratch(Layout& layout, const MostKeys& keys, int64_t window, const Depth<Operand>& depth)
        : packed(layout, keys.packed, depth),
          block(layout, depth),
          decode(layout, depth),
          in_place(layout, depth),
          scales(layout, kHasScales ? round_up(keys.in_tiles, kPanel) : 0),
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
      append(tensors_.k, row, unit % kv_heads, keys_of(row, unit % kv_heads));
      append(tensors_.v, row, unit % kv_heads, values_of(row, unit % kv_heads));
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
        decode(queries_of(row, unit % kv_heads), tensors_.q.strides[2], keys_of(row, unit % kv_heads),
               values_of(row, unit % kv_heads), parts.keys_of(part, {row.first_key, row.num_keys()}), depth_, scale_,
               scratch.decode, parts.state(unit, part));
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
  CachedRows keys_of(const StepRow& row, int64_t kv_head, int64_t first = 0) const {
    return cached_rows(tensors_.key_cache, tensors_.key_scales, row, kv_head, first);
  }
  CachedRows values_of(const StepRow& row, int64_t kv_head, int64_t first = 0) const {
    return cached_rows(tensors_.value_cache, tensors_.value_scales, row, kv_head, first);
  }
  static CachedRows cached_rows(const Tensor& cache, [[maybe_unused]] const Tensor& scales, const StepRow& row,
                                int64_t kv_head, int64_t first) {
    const PagedRows<Element> rows = {static_cast<Element*>(cache.data) + kv_head * cache.strides[1],
                                     row.blocks.data(),
                                     cache.strides[0],
                                     cache.shape[2],
                                     cache.strides[2],
                                     cache.strides[3],
                                     first};
    if constexpr (kHasScales) {
      return {rows, static_cast<float*>(scales.data) + kv_head * scales.strides[1], scales.strides[0],
              scales.strides[2]};
    } else {
      return rows;
    }
  }

  // The step's keys or values of one head go to their positions in the cache, as the numbers that stay there.
  void append(const Tensor& step, const StepRow& row, int64_t kv_head, const CachedRows& cached) const {
    const T* from = static_cast<const T*>(step.data) + kv_head * step.strides[1];
    for (int64_t i = 0; i < row.num_tokens; ++i) {
      const T* token = from + (row.first_token + i) * step.strides[0];
      Element* to = const_cast<Element*>(cached[row.first_position + i]);
      if constexpr (kHasScales) {
        *cached.scale_of(row.first_position + i) =
            quantize_row(token, step.strides[2], depth_.size, to, cached.column_stride);
      } else {
        for (int64_t d = 0; d < depth_.size; ++d) to[d * cached.column_stride] = token[d * step.strides[2]];
      }
    }
  }

  // Of the rows that are seen, from row 0 on.
  static auto scales_of([[maybe_unused]] const CachedRows& keys, [[maybe_unused]] const CachedRows& values,
                        [[maybe_unused]] KeyRange seen, [[maybe_unused]] const ThreadScratch& scratch) {
    if constexpr (kHasScales) {
      const int64_t count = round_up(seen.end, kPanel);
      return HeadScales<Scaled>{{fill_scales(keys, seen, count, scratch.scales.keys)},
                                {fill_scales(values, seen, count, scratch.scales.values)}};
    } else {
      return HeadScales<Unscaled>{};
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
    const CachedRows keys = keys_of(row, kv_head, origin), values = values_of(row, kv_head, origin);
    typename Operand::Group* none = nullptr;
    pack_rows(keys, count, depth_, scratch.block.staged, scratch.packed.keys, none, 0, first);
    pack_rows(values, count, depth_, scratch.block.staged, none, scratch.packed.values,
              scratch.packed.values_panel_stride, first);
    if (window_ > 0) fill_window(window_, row.first_position - origin, count, scratch.hidden);
    const auto scales = scales_of(keys, values, {first, count}, scratch);
    if (row.num_tokens == 1 && window_ == 0)
      attend_heads(row, kv_head, scales, values, scratch);
    else
      attend_tokens(row, kv_head, scales, values, scratch);
  }

  // One token, whose heads are rows of one product, by the tiles' sums.
  void attend_token(const StepRow& row, int64_t kv_head, ThreadScratch& scratch) const {
    const int64_t origin = origin_of(row), count = num_packed(row);
    const KeyRange seen = {row.first_key - origin, count};
    const CachedRows keys = keys_of(row, kv_head, origin), values = values_of(row, kv_head, origin);
    const auto scales = scales_of(keys, values, seen, scratch);
    if (window_ > 0) fill_hidden(seen.begin, count, scratch.hidden);
    const HeadMask mask = {group_size(), count, false, {}, &scratch.hidden, batch_invariant_};
    const HeadRows<T> rows = heads_of(row, kv_head);
    for (int64_t begin = 0; begin < group_size(); begin += kQueryBlock) {
      const QueryRange range = {begin, clamp(begin + kQueryBlock, 0, group_size())};
      attend_in_place(rows, range, mask, scale_, scales, keys, values, seen, depth_, scratch.block, scratch.in_place);
    }
  }

  // The heads of a group as rows, of one token.
  HeadRows<T> heads_of(const StepRow& row, int64_t kv_head) const {
    const int64_t head = kv_head * group_size();
    const StridedRows<T> queries = {query_at(row.first_token, head), tensors_.q.strides[1], tensors_.q.strides[2]};
    return {queries, out_at(row.first_token, head), tensors_.out.strides[1], nullptr};
  }

  template <class Scales>
  void attend_tokens(const StepRow& row, int64_t kv_head, const Scales& scales, const CachedRows& values,
                     const ThreadScratch& scratch) const {
    const HeadMask mask = {row.num_tokens, num_packed(row), true, {}, &scratch.hidden, batch_invariant_};
    for (int64_t head = kv_head * group_size(); head < (kv_head + 1) * group_size(); ++head) {
      const Tensor& q = tensors_.q;
      const StridedRows<T> queries = {query_at(row.first_token, head), q.strides[0], q.strides[2]};
      attend(row.num_tokens, {queries, out_at(row.first_token, head), tensors_.out.strides[0], nullptr}, mask, scales,
             values, scratch);
    }
  }

  // One token sees all keys: its heads are rows of one product.
  template <class Scales>
  void attend_heads(const StepRow& row, int64_t kv_head, const Scales& scales, const CachedRows& values,
                    const ThreadScratch& scratch) const {
    const HeadMask mask = {group_size(), num_packed(row), false, {}, &scratch.hidden, batch_invariant_};
    attend(group_size(), heads_of(row, kv_head), mask, scales, values, scratch);
  }

  template <class Scales>
  void attend(int64_t num_queries, const HeadRows<T>& rows, const HeadMask& mask, const Scales& scales,
              const CachedRows& values, const ThreadScratch& scratch) const {
    for (int64_t begin = 0; begin < num_queries; begin += kQueryBlock) {
      const QueryRange range = {begin, clamp(begin + kQueryBlock, 0, num_queries)};
      attend_block(rows, range, mask, scale_, scratch.packed, values, depth_, scratch.block, scales);
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
                     const Tensor& value_cache, const Tensor& key_scales, const Tensor& value_scales,
                     const std::vector<StepRow>& rows, float scale, int64_t window, bool batch_invariant,
                     const Tensor& out) {
  const PagedTensors tensors = {q, k, v, key_cache, value_cache, key_scales, value_scales, out};
  visit_floating(q.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (key_scales) {
      PagedAttention<T, Code>(tensors, rows, scale, window, batch_invariant).run();
    } else {
      PagedAttention<T, T>(tensors, rows, scale, window, batch_invariant).run();
    }
  });
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
