// Which keys a query attends to: causal, a dense mask, and start/end rows; and which blocks of keys can be skipped.
#pragma once

#include <type_traits>

#include "kernels/matrix_unit.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kKeyBlock = 256;  // keys of one step of the online softmax; a multiple of kPanel

inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

struct KeyRange {
  int64_t begin, end;
};

// One head's attn_mask; data is null without one.
struct DenseMask {
  const void* data = nullptr;
  DType dtype = DType::kBool;
  int64_t query_stride = 0, key_stride = 0;
};

// The smallest and largest begin and end of each chunk of keys.
struct IntervalBounds {
  int32_t *min_begin = nullptr, *max_begin = nullptr, *min_end = nullptr, *max_end = nullptr;

  bool hide(int64_t chunk, int64_t query_begin, int64_t query_end) const {
    return max_begin[chunk] <= query_begin && min_end[chunk] >= query_end;
  }
  bool touch(int64_t chunk, int64_t query_begin, int64_t query_end) const {
    return min_begin[chunk] < query_end && max_end[chunk] > query_begin;
  }
};

// startend_row_indices of one head: key j is hidden from the queries [begin[i][j], end[i][j]) for each interval i. The
// bounds of a panel and of a vector of keys tell whether it is hidden wholly, or at all.
struct KeyIntervals {
  int count = 0;
  int32_t *begin[2] = {}, *end[2] = {};
  IntervalBounds panels[2] = {}, vectors[2] = {};

  bool hide_panel(int64_t panel, int64_t query_begin, int64_t query_end) const {
    for (int i = 0; i < count; ++i)
      if (panels[i].hide(panel, query_begin, query_end)) return true;
    return false;
  }
  bool hide_vector(int64_t vector, int64_t query_begin, int64_t query_end) const {
    for (int i = 0; i < count; ++i)
      if (vectors[i].hide(vector, query_begin, query_end)) return true;
    return false;
  }
  bool touch_vector(int64_t vector, int64_t query_begin, int64_t query_end) const {
    for (int i = 0; i < count; ++i)
      if (vectors[i].touch(vector, query_begin, query_end)) return true;
    return false;
  }
};

struct Extremes {
  int32_t smallest = INT32_MAX, largest = INT32_MIN;
  void add(int32_t x, int32_t y) {
    smallest = x < smallest ? x : smallest;
    largest = y > largest ? y : largest;
  }
};

// bounds[chunk] of chunks of `size` of the num_items items that have these smallest and largest values.
inline void fill_bounds(const int32_t* small, const int32_t* large, int64_t num_items, int64_t size,
                        int32_t* min_of_chunk, int32_t* max_of_chunk) {
  for (int64_t first = 0, chunk = 0; first < num_items; first += size, ++chunk) {
    Extremes extremes;
    const int64_t end = first + size < num_items ? first + size : num_items;
    for (int64_t item = first; item < end; ++item) extremes.add(small[item], large[item]);
    min_of_chunk[chunk] = extremes.smallest;
    max_of_chunk[chunk] = extremes.largest;
  }
}

// The bounds of every vector and panel of keys, once begin and end are known.
inline void bound_intervals(int64_t num_keys, KeyIntervals& intervals) {
  const int64_t num_vectors = round_up(num_keys, kLanes) / kLanes;
  for (int i = 0; i < intervals.count; ++i) {
    const IntervalBounds &vectors = intervals.vectors[i], &panels = intervals.panels[i];
    fill_bounds(intervals.begin[i], intervals.begin[i], num_keys, kLanes, vectors.min_begin, vectors.max_begin);
    fill_bounds(intervals.end[i], intervals.end[i], num_keys, kLanes, vectors.min_end, vectors.max_end);
    fill_bounds(vectors.min_begin, vectors.max_begin, num_vectors, kPanel / kLanes, panels.min_begin, panels.max_begin);
    fill_bounds(vectors.min_end, vectors.max_end, num_vectors, kPanel / kLanes, panels.min_end, panels.max_end);
  }
}

// columns is [num_keys, 1 | 2 | 4] with the given strides; the arrays were laid out by the caller.
inline void fill_intervals(const int32_t* columns, int64_t num_columns, int64_t key_stride, int64_t column_stride,
                           bool causal, int64_t num_keys, KeyIntervals& intervals) {
  const bool has_end = num_columns == (causal ? 2 : 4);
  for (int64_t key = 0; key < num_keys; ++key) {
    const int32_t* at = columns + key * key_stride;
    intervals.begin[0][key] = at[0];
    intervals.end[0][key] = has_end ? at[column_stride] : INT32_MAX;
    if (intervals.count == 1) continue;
    intervals.begin[1][key] = has_end ? at[2 * column_stride] : INT32_MIN;
    intervals.end[1][key] = has_end ? at[3 * column_stride] : at[column_stride];
  }
  bound_intervals(num_keys, intervals);
}

// A query sees its own key and the window - 1 before it. The first query's own key is `offset`.
inline void fill_window(int64_t window, int64_t offset, int64_t num_keys, KeyIntervals& intervals) {
  for (int64_t key = 0; key < num_keys; ++key) {
    intervals.begin[0][key] = static_cast<int32_t>(clamp(key - offset + window, INT32_MIN, INT32_MAX));
    intervals.end[0][key] = INT32_MAX;
  }
  bound_intervals(num_keys, intervals);
}

// Every query sees the keys from `first` on.
inline void fill_hidden(int64_t first, int64_t num_keys, KeyIntervals& intervals) {
  for (int64_t key = 0; key < num_keys; ++key) {
    intervals.begin[0][key] = key < first ? 0 : INT32_MAX;
    intervals.end[0][key] = INT32_MAX;
  }
  bound_intervals(num_keys, intervals);
}

struct HeadMask {
  int64_t num_queries, num_keys;
  bool causal;
  DenseMask dense;
  const KeyIntervals* intervals;
  // Blocks of keys begin at multiples of kKeyBlock, and their scores are masked alike, whatever the queries: a query's
  // sums then have one order.
  bool aligned = false;

  // Causal, aligned bottom-right, lets this query see the keys [0, visible).
  int64_t visible(int64_t query) const {
    return causal ? clamp(query + 1 + num_keys - num_queries, 0, num_keys) : num_keys;
  }

  // Moves to the next block of keys that some query of the range may see, from panel to panel; false at the end.
  bool next_block(int64_t query_begin, int64_t query_end, KeyRange& block) const {
    const int64_t limit = visible(query_end - 1);
    if (aligned) {
      const int64_t begin = round_up(block.end, kKeyBlock);
      block = {begin, clamp(begin + kKeyBlock, begin, limit)};
      return begin < limit;
    }
    const auto hidden = [&](int64_t key) { return intervals->hide_panel(key / kPanel, query_begin, query_end); };
    int64_t begin = round_up(block.end, kPanel);
    while (begin < limit && hidden(begin)) begin += kPanel;
    if (begin >= limit) return false;
    int64_t end = clamp(begin + kKeyBlock, begin, round_up(limit, kPanel));
    while (hidden(end - kPanel)) end -= kPanel;
    block = {begin, end < limit ? end : limit};
    return true;
  }
};

// A score that is not finite plus -inf would be NaN: a dropped key has no score, whatever it holds.
template <class T>
void add_mask(const T* mask, int64_t stride, int64_t count, float scale, float* scores) {
  constexpr float kDropped = -__builtin_inff();
  int64_t i = 0;
  for (; stride == 1 && i + kLanes <= count; i += kLanes) {
    const Vec added = load(mask + i), sum = fma(load(scores + i), broadcast(scale), added);
    store(scores + i, added == kDropped ? added : sum);
  }
  for (; i < count; ++i) {
    const float added = to_float(mask[i * stride]);
    scores[i] = added == kDropped ? added : scores[i] * scale + added;
  }
}

inline void select_mask(const uint8_t* mask, int64_t stride, int64_t count, float scale, float* scores) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  int64_t i = 0;
  for (; stride == 1 && i + kLanes <= count; i += kLanes) {
    Bytes bytes;
    __builtin_memcpy(&bytes, mask + i, sizeof bytes);
    const UintVec attend = __builtin_convertvector(bytes, UintVec);
    store(scores + i, attend != 0 ? load(scores + i) * broadcast(scale) : broadcast(-__builtin_inff()));
  }
  for (; i < count; ++i) scores[i] = mask[i * stride] != 0 ? scores[i] * scale : -__builtin_inff();
}

inline void add_dense(const DenseMask& mask, int64_t query, int64_t key, int64_t count, float scale, float* scores) {
  const int64_t offset = query * mask.query_stride + key * mask.key_stride;
  if (mask.dtype == DType::kBool) {
    select_mask(static_cast<const uint8_t*>(mask.data) + offset, mask.key_stride, count, scale, scores);
  } else {
    visit_floating(mask.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      add_mask(static_cast<const T*>(mask.data) + offset, mask.key_stride, count, scale, scores);
    });
  }
}

// Scores of one query against the keys [key, key + count): scaled, then masked with -inf or by addition.
inline void mask_row(const HeadMask& mask, int64_t query, int64_t key, int64_t count, float scale, float* scores) {
  if (mask.dense.data != nullptr) {
    add_dense(mask.dense, query, key, count, scale, scores);
  } else {
    for (int64_t i = 0; i < count; ++i) scores[i] *= scale;
  }
  const KeyIntervals& intervals = *mask.intervals;
  for (int n = 0; n < intervals.count; ++n) {
    const int32_t *begin = intervals.begin[n] + key, *end = intervals.end[n] + key;
    const int32_t row = static_cast<int32_t>(query);
    for (int64_t i = 0; i < count; ++i) {
      scores[i] = (begin[i] <= row) & (row < end[i]) ? -__builtin_inff() : scores[i];
    }
  }
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
