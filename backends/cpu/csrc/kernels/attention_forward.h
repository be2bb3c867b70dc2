// softmax(q k^T) v of one head, a block of queries against a block of keys at a time, with a running maximum and sum
// for each query (Dao et al. 2022, arXiv:2205.14135, algorithm 1).
#pragma once

#include "kernels/attention_mask.h"
#include "kernels/attention_pack.h"
#include "kernels/attention_schedule.h"
#include "kernels/attention_softmax.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kQueryBlock = 96;                   // a multiple of kTileRows
constexpr int64_t kScoreStride = kKeyBlock + kLanes;  // off a power of two: rows would share cache sets

// The keys and values of one head as right operands.
template <class Operand>
struct PackedHead {
  typename Operand::Group *keys, *values;  // [head_dim, keys] and [keys, head_dim]
  int64_t values_panel_stride;

  PackedHead() = default;
  PackedHead(Layout& layout, int64_t num_keys, const Depth<Operand>& depth)
      : values_panel_stride(round_up(num_keys, kLanes) / Operand::kGroup * kPanel) {
    keys = layout.take<typename Operand::Group>(round_up(num_keys, kPanel) * depth.groups);
    values = layout.take<typename Operand::Group>(depth.panels() * values_panel_stride);
  }
};

// What one thread needs for a block of queries.
template <class Operand>
struct ForwardScratch {
  typename Operand::Group *queries, *staged;
  float *scores, *output, *maximum, *sum;
  typename Operand::Element* probabilities;

  ForwardScratch(Layout& layout, const Depth<Operand>& depth) {
    queries = layout.take<typename Operand::Group>(kQueryBlock * depth.staged_groups);
    staged = layout.take<typename Operand::Group>(kLanes * depth.staged_groups);
    scores = layout.take<float>(kQueryBlock * kScoreStride);
    probabilities = layout.take<typename Operand::Element>(kQueryBlock * kScoreStride);
    output = layout.take<float>(kQueryBlock * depth.columns);
    maximum = layout.take<float>(kQueryBlock);
    sum = layout.take<float>(kQueryBlock);
  }
};

// Queries [begin, end) of one head. Row i of a block belongs to query begin + i.
struct QueryRange {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Keys of the block that the queries of a row of tiles may see, and that one of them does.
struct BlockView {
  const HeadMask& mask;
  QueryRange queries;
  KeyRange keys;
  int64_t seen_by(int64_t row) const {
    return clamp(mask.visible(queries.begin + row) - keys.begin, 0, keys.end - keys.begin);
  }
  int64_t seen_by_tile(int64_t row) const {
    const int64_t last = row / kTileRows * kTileRows + kTileRows - 1;
    return round_up(seen_by(last < queries.size() ? last : queries.size() - 1), kLanes);
  }
  // The first row that sees this key of the block, as far as causal tells.
  int64_t first_to_see(int64_t key) const {
    if (!mask.causal) return 0;
    return clamp(keys.begin + key + mask.num_queries - mask.num_keys - queries.begin, 0, queries.size());
  }
};

// scores[row][key] = q . k for every tile that some query sees a key of.
template <class Operand>
void multiply_scores(const typename Operand::Group* queries, const typename Operand::Group* keys,
                     const Depth<Operand>& depth, const BlockView& view, float* scores) {
  const int64_t panel_stride = depth.groups * kPanel;
  const Right<Operand> right = {keys + view.keys.begin / kPanel * panel_stride, panel_stride};
  multiply(Left<Operand>{queries, depth.staged_groups, 1}, view.queries.size(), right, view.keys.end - view.keys.begin,
           scores, kScoreStride, false,
           [&](int64_t row, int64_t column) { return TileWork{0, depth.groups, view.seen_by_tile(row) - column}; });
}

// Scales and masks a row of raw scores as far as its tile goes. Returns the factor that is still to be applied.
inline float finish_scores(const BlockView& view, int64_t row, bool touched, float scale, float* scores) {
  const int64_t seen = view.seen_by(row), width = view.seen_by_tile(row);
  const bool finished = touched || !(scale > 0);  // the factor must not turn the -inf below
  if (finished) mask_row(view.mask, view.queries.begin + row, view.keys.begin, seen, scale, scores);
  for (int64_t i = seen; i < width; ++i) scores[i] = -kInfinity;
  return finished ? 1.0f : scale;
}

template <class T>
void store_quotients(const float* row, int64_t size, float divisor, T* to) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, load(row + i) / broadcast(divisor));
  if (i < size) store_partial(to + i, load(row + i) / broadcast(divisor), size - i);
}

// Where the queries of one head come from and their results go; lse may be null.
template <class T>
struct HeadRows {
  StridedRows<T> queries;
  T* out;
  int64_t out_stride;
  float* lse;
};

template <class T, class Operand>
void store_block(const HeadRows<T>& rows, QueryRange queries, const Depth<Operand>& depth,
                 const ForwardScratch<Operand>& scratch) {
  for (int64_t row = 0; row < queries.size(); ++row) {
    const int64_t query = queries.begin + row;
    const float total = scratch.sum[row];
    store_quotients(scratch.output + row * depth.columns, depth.size, total == 0 ? 1 : total,
                    rows.out + query * rows.out_stride);
    if (rows.lse != nullptr) rows.lse[query] = scratch.maximum[row] + __builtin_logf(total);
  }
}

// Softmax of the block's scores; rescales what the rows accumulated so far.
template <class Operand>
void soften_block(const BlockView& view, float scale, const Depth<Operand>& depth,
                  const ForwardScratch<Operand>& scratch) {
  const bool touched = view.mask.touches(view.queries.begin, view.queries.end, view.keys);
  for (int64_t row = 0; row < view.queries.size(); ++row) {
    const int64_t width = view.seen_by_tile(row);
    if (width == 0) continue;
    float* scores = scratch.scores + row * kScoreStride;
    const float factor = finish_scores(view, row, touched, scale, scores);
    const float rescale = soften_row<Operand>(scores, width, factor, scratch.maximum[row], scratch.sum[row],
                                              scratch.probabilities + row * kScoreStride);
    if (rescale != 1) scale_row(scratch.output + row * depth.columns, depth.columns, rescale);
  }
}

// out and lse of at most kQueryBlock queries.
template <class T, class Operand>
void attend_block(const HeadRows<T>& rows, QueryRange queries, const HeadMask& mask, float scale,
                  const PackedHead<Operand>& packed, const Depth<Operand>& depth,
                  const ForwardScratch<Operand>& scratch) {
  const int64_t size = queries.size();
  stage_rows(rows.queries, queries.begin, queries.end, size, depth, scratch.queries);
  for (int64_t i = 0; i < size * depth.columns; ++i) scratch.output[i] = 0;
  for (int64_t i = 0; i < size; ++i) scratch.maximum[i] = -kInfinity, scratch.sum[i] = 0;
  KeyRange keys = {0, 0};
  while (mask.next_block(queries.begin, queries.end, keys)) {
    const BlockView view = {mask, queries, keys};
    multiply_scores(scratch.queries, packed.keys, depth, view, scratch.scores);
    soften_block(view, scale, depth, scratch);
    const auto* left = reinterpret_cast<const typename Operand::Group*>(scratch.probabilities);
    const auto* right = packed.values + keys.begin / Operand::kGroup * kPanel;
    multiply(Left<Operand>{left, kScoreStride / Operand::kGroup, 1}, size,
             Right<Operand>{right, packed.values_panel_stride}, depth.size, scratch.output, depth.columns, true,
             [&](int64_t row, int64_t) { return TileWork{0, view.seen_by_tile(row) / Operand::kGroup, kPanel}; });
  }
  store_block(rows, queries, depth, scratch);
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
