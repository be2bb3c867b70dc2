// The tiles' sums of a few queries, from keys and values where they lie. Packing all of them for attention_forward.h
// writes and reads them once more, which costs more than the products. Here a panel of keys is packed at a time, and
// multiplied while it is in the first-level cache; values are not packed. Every sum has the tiles' order and their
// bits.
#pragma once

#include "kernels/attention_decode.h"
#include "kernels/attention_forward.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kRowsAhead = 64;  // that are asked for while a row is read

// In the order in which a block's rows are read.
template <class T, class Operand>
struct InPlaceScratch {
  const T** rows;  // its keys, its values, and the first keys of the next block
  typename Operand::Group* panel;

  InPlaceScratch(Layout& layout, const Depth<Operand>& depth)
      : rows(layout.take<const T*>(2 * kKeyBlock + kRowsAhead)),
        panel(layout.take<typename Operand::Group>(kPanel * depth.groups)) {}
};

// at[i] = where row begin + i lies; outside of `seen` the nearest row inside.
template <class T, class Rows>
void locate(const Rows& rows, KeyRange range, KeyRange seen, const T** at) {
  for (int64_t row = range.begin; row < range.end;) {
    const int64_t inside = clamp(row, seen.begin, seen.end - 1);
    int64_t end = row < seen.begin ? seen.begin : row < seen.end ? seen.end : range.end, step = 0;
    if (row == inside) {
      step = rows.row_stride;
      if (rows.left_in_block(row) < end - row) end = row + rows.left_in_block(row);
    }
    if (end > range.end) end = range.end;
    const T* from = rows[inside];
    for (; row < end; ++row, from += step) at[row - range.begin] = from;
  }
}

// A panel of the keys [0, count).
template <class T, class Operand>
void pack_key_panel(const T* const* keys, int64_t count, const Depth<Operand>& depth, typename Operand::Group* panel) {
  constexpr int64_t kStep = kLanes * Operand::kGroup;
  for (int64_t column = 0; column < count; column += kLanes) {
    for (int64_t i = 0; i < depth.size; i += kStep) {
      UintVec rows[kLanes];
#pragma GCC unroll 16
      for (int n = 0; n < kLanes; ++n) {
        if (asks_ahead<T>(i)) prefetch_values(keys[column + n + kRowsAhead] + i, kStep);
        rows[n] = (UintVec)RowGroups<T, Operand>::load_some(keys[column + n] + i, depth.size - i);
      }
      transpose(rows);
      const int64_t group = i / Operand::kGroup;
      store_rows(rows, depth.groups - group, panel + group * kPanel + column, kPanel);
    }
  }
}

template <class T, class Operand>
void multiply_scores_in_place(const typename Operand::Group* queries, const T* const* keys, const Depth<Operand>& depth,
                              const BlockView& view, typename Operand::Group* panel, float* scores) {
  const int64_t count = view.keys.end - view.keys.begin;
  const int64_t first = view.span_of(0).begin;  // every query's
  for (int64_t key = first - first % kPanel; key < count; key += kPanel) {
    const int64_t width = clamp(count - key, 0, kPanel);
    pack_key_panel(keys + key, width, depth, panel);
    MatrixUnit::multiply(Left<Operand>{queries, depth.staged_groups, 1}, view.queries.size(), Right<Operand>{panel, 0},
                         width, scores + key, kScoreStride, false,
                         [&](int64_t) { return TileWork{{0, depth.groups}, 0, width}; });
  }
}

template <class T, class Operand>
void add_weighted_in_place(const typename Operand::Element* probabilities, const T* const* values,
                           const Depth<Operand>& depth, const BlockView& view, float* sums) {
  constexpr int64_t kChain = Operand::kLongestChain;
  const int64_t num_keys = round_up(view.keys.end - view.keys.begin, Operand::kGroup);
  for (int64_t key = view.span_of(0).begin, end; key < num_keys; key = end) {
    end = num_keys - key < kChain - key % kChain ? num_keys : key - key % kChain + kChain;
    for (int64_t row = 0, count; row < view.queries.size(); row += count) {
      count = clamp(view.queries.size() - row, 1, kDecodeQueriesAtOnce);
      add_all_values<kDecodeQueriesAtOnce, T, Operand>(
          count, probabilities + row * kScoreStride + key, kScoreStride, values + key,
          values + key + (row == 0 ? kRowsAhead : 0), end - key, depth.size, sums + row * depth.columns, depth.columns);
    }
  }
}

// out of at most kQueryBlock queries that see the same keys. Those outside of `seen`, which the mask drops, are not
// read.
template <class T, class Operand, class Rows, class Scaling>
void attend_in_place(const HeadRows<T>& rows, QueryRange queries, const HeadMask& mask, float scale,
                     const HeadScales<Scaling>& scales, const Rows& keys, const Rows& values, KeyRange seen,
                     const Depth<Operand>& depth, const ForwardScratch<Operand>& scratch,
                     const InPlaceScratch<typename Rows::Element, Operand>& in_place) {
  int64_t width = 0;
  const auto score = [&](const BlockView& view) {
    const KeyRange block = view.keys;
    width = round_up(block.end - block.begin, kPanel);
    locate(keys, {block.begin, block.begin + width}, seen, in_place.rows);
    locate(values, {block.begin, block.begin + width}, seen, in_place.rows + width);
    locate(keys, {block.end, block.end + kRowsAhead}, seen, in_place.rows + 2 * width);
    multiply_scores_in_place(scratch.queries, in_place.rows, depth, view, in_place.panel, scratch.scores);
  };
  const auto add = [&](const BlockView& view) {
    add_weighted_in_place(scratch.probabilities, in_place.rows + width, depth, view, scratch.output);
  };
  attend_blocks(rows, queries, mask, scale, scales, values, depth, scratch, score, add);
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
