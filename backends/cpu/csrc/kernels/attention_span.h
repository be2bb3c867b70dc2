// Of a block of queries against a block of keys: the keys that each row of tiles needs, so that what is hidden from all
// its queries is not computed, and whether the mask must be applied to them at all.
#pragma once

#include "kernels/attention_mask.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int kSpanRows = MatrixUnit::kRows;
constexpr int64_t kQueryBlock = MatrixUnit::kQueryBlock;
constexpr int64_t kMostSpans = kQueryBlock / kSpanRows;

// Queries [begin, end) of one head. Row i of a block belongs to query begin + i.
struct QueryRange {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Keys of the block, from a multiple of kKeysTogether on; none: begin >= end.
struct KeySpan {
  int64_t begin, end;
  bool masked;  // by more than causal
  bool empty() const { return begin >= end; }
  int64_t padded_end() const { return round_up(end, MatrixUnit::kKeysTogether); }
};

// Hidden keys that come with it are masked.
inline KeySpan begin_together(KeySpan span) {
  const int64_t more = span.empty() ? 0 : span.begin % MatrixUnit::kKeysTogether;
  return {span.begin - more, span.end, span.masked || more != 0};
}

// state(first, count) of the keys [first, first + count), count <= kLanes.
enum class Visibility { kNone, kSome, kAll };

template <class State>
KeySpan narrow(KeySpan span, const State& state) {
  const auto at = [&](int64_t key) { return state(key, span.end - key < kLanes ? span.end - key : kLanes); };
  while (!span.empty() && at(span.begin) == Visibility::kNone) span.begin += kLanes;
  int64_t last = round_up(span.end, kLanes) - kLanes;
  while (last > span.begin && at(last) == Visibility::kNone) last -= kLanes;
  if (last + kLanes < span.end) span.end = last + kLanes;
  for (int64_t key = span.begin; key < span.end && !span.masked; key += kLanes) {
    span.masked = at(key) != Visibility::kAll;
  }
  return span;
}

inline bool any_lane(IntVec a) {
  uint64_t words[kLanes / 2], any = 0;
  __builtin_memcpy(words, &a, sizeof a);
  for (uint64_t word : words) any |= word;
  return any != 0;
}

template <class T>
Visibility visibility(const T* mask, int64_t query_stride, int64_t num_queries, int64_t count) {
  IntVec seen{}, changed{};
  for (int64_t query = 0; query < num_queries; ++query, mask += query_stride) {
    const Vec added = count == kLanes ? load(mask) : load_partial(mask, count);
    seen |= added != -__builtin_inff();  // NaN as well
    changed |= added != 0.0f;
  }
  if (!any_lane(changed)) return Visibility::kAll;
  return any_lane(seen) ? Visibility::kSome : Visibility::kNone;
}

inline Visibility visibility(const uint8_t* mask, int64_t query_stride, int64_t num_queries, int64_t count) {
  uint64_t any = 0, all = 0x0101010101010101;
  for (int64_t query = 0; query < num_queries; ++query, mask += query_stride) {
    for (int64_t i = 0; i < count; i += 8) {
      uint64_t bytes = 0x0101010101010101;
      const int64_t left = count - i < 8 ? count - i : 8;
      if (left == 8) {
        __builtin_memcpy(&bytes, mask + i, 8);
      } else {
        __builtin_memcpy(&bytes, mask + i, left);
      }
      all &= bytes;
      any |= left == 8 ? bytes : bytes & ((uint64_t{1} << 8 * left) - 1);
    }
  }
  if (any == 0) return Visibility::kNone;
  return all == 0x0101010101010101 ? Visibility::kAll : Visibility::kSome;
}

template <class T>
KeySpan narrow_dense(KeySpan span, const DenseMask& mask, QueryRange queries, int64_t first_key) {
  const T* data = static_cast<const T*>(mask.data) + queries.begin * mask.query_stride + first_key;
  return narrow(span, [&](int64_t key, int64_t count) {
    return visibility(data + key, mask.query_stride, queries.size(), count);
  });
}

inline KeySpan narrow_dense(KeySpan span, const DenseMask& mask, QueryRange queries, int64_t first_key) {
  if (mask.key_stride != 1) return {span.begin, span.end, true};
  if (mask.dtype == DType::kBool) return narrow_dense<uint8_t>(span, mask, queries, first_key);
  visit_floating(mask.dtype, [&](auto* type) {
    span = narrow_dense<std::remove_pointer_t<decltype(type)>>(span, mask, queries, first_key);
  });
  return span;
}

inline KeySpan narrow_intervals(KeySpan span, const KeyIntervals& intervals, QueryRange queries, int64_t first_key) {
  return narrow(span, [&](int64_t key, int64_t) {
    const int64_t vector = (first_key + key) / kLanes;
    if (intervals.hide_vector(vector, queries.begin, queries.end)) return Visibility::kNone;
    return intervals.touch_vector(vector, queries.begin, queries.end) ? Visibility::kSome : Visibility::kAll;
  });
}

// The queries of a block against one block of keys.
struct BlockView {
  const HeadMask& mask;
  QueryRange queries;
  KeyRange keys;
  KeySpan spans[kMostSpans];

  BlockView(const HeadMask& mask, QueryRange queries, KeyRange keys) : mask(mask), queries(queries), keys(keys) {
    for (int64_t row = 0; row < queries.size(); row += kSpanRows) {
      const QueryRange tile = {queries.begin + row, clamp(queries.begin + row + kSpanRows, 0, queries.end)};
      KeySpan span = {0, seen_by(tile.size() + row - 1), false};
      if (mask.dense.data != nullptr) span = narrow_dense(span, mask.dense, tile, keys.begin);
      if (mask.intervals->count > 0) span = narrow_intervals(span, *mask.intervals, tile, keys.begin);
      if (mask.intervals->count > 0 && mask.aligned) span.masked = true;
      spans[row / kSpanRows] = begin_together(span);
    }
  }

  // As far as causal tells, the first ones.
  int64_t seen_by(int64_t row) const {
    return clamp(mask.visible(queries.begin + row) - keys.begin, 0, keys.end - keys.begin);
  }
  const KeySpan& span_of(int64_t row) const { return spans[row / kSpanRows]; }
  bool empty() const {
    for (int64_t row = 0; row < queries.size(); row += kSpanRows)
      if (!span_of(row).empty()) return false;
    return true;
  }

  // The rows whose spans meet the keys [key, key + kSpanRows), and perhaps some between them.
  QueryRange rows_that_see(int64_t key) const {
    const auto meets = [&](int64_t row) {
      return span_of(row).begin < key + kSpanRows && span_of(row).end > key && !span_of(row).empty();
    };
    QueryRange rows = {0, round_up(queries.size(), kSpanRows)};
    while (rows.begin < rows.end && !meets(rows.begin)) rows.begin += kSpanRows;
    while (rows.begin < rows.end && !meets(rows.end - kSpanRows)) rows.end -= kSpanRows;
    if (rows.end > queries.size()) rows.end = queries.size();
    return rows;
  }
};

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
