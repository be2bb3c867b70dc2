// Which keys a query attends to: causal, a dense mask, and start/end rows; and which blocks of keys can be skipped.
#pragma once

#include <type_traits>

#include "kernels/attention_product.h"

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

// startend_row_indices of one head: key j is hidden from the queries [begin[i][j], end[i][j]) for each interval i. The
// bounds of a panel of keys tell whether it is hidden wholly, or at all.
struct KeyIntervals {
  int count = 0;
  int32_t *begin[2] = {}, *end[2] = {};
  int32_t *min_begin[2] = {}, *max_begin[2] = {}, *min_end[2] = {}, *max_end[2] = {};

  bool hide_panel(int64_t panel, int64_t query_begin, int64_t query_end) const {
    for (int i = 0; i < count; ++i)
      if (max_begin[i][panel] <= query_begin && min_end[i][panel] >= query_end) return true;
    return false;
  }
  bool touch_panel(int64_t panel, int64_t query_begin, int64_t query_end) const {
    for (int i = 0; i < count; ++i)
      if (min_begin[i][panel] < query_end && max_end[i][panel] > query_begin) return true;
    return false;
  }
};

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
  for (int i = 0; i < intervals.count; ++i) {
    for (int64_t first = 0, panel = 0; first < num_keys; first += kPanel, ++panel) {
      int32_t min_begin = INT32_MAX, max_begin = INT32_MIN, min_end = INT32_MAX, max_end = INT32_MIN;
      for (int64_t key = first; key < num_keys && key < first + kPanel; ++key) {
        const int32_t begin = intervals.begin[i][key], end = intervals.end[i][key];
        min_begin = begin < min_begin ? begin : min_begin;
        max_begin = begin > max_begin ? begin : max_begin;
        min_end = end < min_end ? end : min_end;
        max_end = end > max_end ? end : max_end;
      }
      intervals.min_begin[i][panel] = min_begin;
      intervals.max_begin[i][panel] = max_begin;
      intervals.min_end[i][panel] = min_end;
      intervals.max_end[i][panel] = max_end;
    }
  }
}

struct HeadMask {
  int64_t num_queries, num_keys;
  bool causal;
  DenseMask dense;
  const KeyIntervals* intervals;

  // Causal, aligned bottom-right, lets this query see the keys [0, visible).
  int64_t visible(int64_t query) const {
    return causal ? clamp(query + 1 + num_keys - num_queries, 0, num_keys) : num_keys;
  }

  // Moves to the next block of keys that some query of the range may see, from panel to panel; false at the end.
  bool next_block(int64_t query_begin, int64_t query_end, KeyRange& block) const {
    const int64_t limit = visible(query_end - 1);
    const auto hidden = [&](int64_t key) { return intervals->hide_panel(key / kPanel, query_begin, query_end); };
    int64_t begin = round_up(block.end, kPanel);
    while (begin < limit && hidden(begin)) begin += kPanel;
    if (begin >= limit) return false;
    int64_t end = clamp(begin + kKeyBlock, begin, round_up(limit, kPanel));
    while (hidden(end - kPanel)) end -= kPanel;
    block = {begin, end < limit ? end : limit};
    return true;
  }

  // Whether the scores of this block need mask_row.
  bool touches(int64_t query_begin, int64_t query_end, KeyRange block) const {
    if (dense.data != nullptr) return true;
    for (int64_t key = block.begin; key < block.end; key += kPanel)
      if (intervals->touch_panel(key / kPanel, query_begin, query_end)) return true;
    return false;
  }
};

template <class T>
void add_mask(const T* mask, int64_t stride, int64_t count, float scale, float* scores) {
  if (stride == 1) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      store(scores + i, fma(load(scores + i), broadcast(scale), load(mask + i)));
    }
    for (; i < count; ++i) scores[i] = scores[i] * scale + to_float(mask[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) scores[i] = scores[i] * scale + to_float(mask[i * stride]);
  }
}

inline void select_mask(const uint8_t* mask, int64_t stride, int64_t count, float scale, float* scores) {
  for (int64_t i = 0; i < count; ++i) scores[i] = mask[i * stride] != 0 ? scores[i] * scale : -__builtin_inff();
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
