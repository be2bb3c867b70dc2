// softmax(q k^T) v of one head, a block of queries against a block of keys at a time, with a running maximum and sum
// for each query (Dao et al. 2022, arXiv:2205.14135, algorithm 1).
#pragma once

#include "kernels/attention_attended.h"
#include "kernels/attention_pack.h"
#include "kernels/attention_schedule.h"
#include "kernels/attention_softmax.h"
#include "kernels/attention_span.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kScoreStride =
    kKeyBlock + MatrixUnit::kKeysTogether;  // off a power of two: rows would share cache sets

// The keys and values of one head as right operands.
template <class Operand>
struct PackedHead {
  typename Operand::Group *keys, *values;  // [head_dim, keys] and [keys, head_dim]
  int64_t values_panel_stride;

  PackedHead() = default;
  PackedHead(Layout& layout, int64_t num_keys, const Depth<Operand>& depth)
      : values_panel_stride(round_up(num_keys, MatrixUnit::kKeysTogether) / Operand::kGroup * kPanel) {
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

// scores[row][key] = q . k for the span of keys of every row of tiles.
template <class Operand>
void multiply_scores(const typename Operand::Group* queries, const typename Operand::Group* keys,
                     const Depth<Operand>& depth, const BlockView& view, float* scores) {
  const int64_t panel_stride = depth.groups * kPanel;
  const Right<Operand> right = {keys + view.keys.begin / kPanel * panel_stride, panel_stride};
  const int64_t columns = round_up(view.keys.end - view.keys.begin, MatrixUnit::kKeysTogether);
  MatrixUnit::multiply(Left<Operand>{queries, depth.staged_groups, 1}, view.queries.size(), right, columns, scores,
                       kScoreStride, false, [&](int64_t row) {
                         const KeySpan& span = view.span_of(row);
                         return TileWork{{0, depth.groups}, span.begin, span.empty() ? span.begin : span.padded_end()};
                       });
}

// sums[row] += the rows of the right operand, one for each key, weighted by the row's span of left.
template <class Operand>
void add_weighted(const typename Operand::Element* left, const typename Operand::Group* right, int64_t panel_stride,
                  const Depth<Operand>& depth, const BlockView& view, float* sums) {
  const auto* groups = reinterpret_cast<const typename Operand::Group*>(left);
  const auto* from = right + view.keys.begin / Operand::kGroup * kPanel;
  MatrixUnit::multiply(Left<Operand>{groups, kScoreStride / Operand::kGroup, 1}, view.queries.size(),
                       Right<Operand>{from, panel_stride}, depth.size, sums, depth.columns, true, [&](int64_t row) {
                         const KeySpan& span = view.span_of(row);
                         const int64_t end = span.empty() ? span.begin : span.padded_end();
                         return TileWork{{span.begin / Operand::kGroup, end / Operand::kGroup}, 0, depth.size};
                       });
}

// Scales and masks a row of raw scores as far as its span goes. Returns the factor that is still to be applied.
inline float finish_scores(const BlockView& view, int64_t row, float scale, float* scores) {
  const KeySpan& span = view.span_of(row);
  const int64_t seen = clamp(view.seen_by(row), span.begin, span.end);
  const bool finished = span.masked || !(scale > 0);  // the factor must not turn the -inf below
  if (finished) {
    mask_row(view.mask, view.queries.begin + row, view.keys.begin + span.begin, seen - span.begin, scale,
             scores + span.begin);
  }
  for (int64_t i = seen; i < span.padded_end(); ++i) scores[i] = -kInfinity;
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
    if (rows.lse != nullptr) rows.lse[query] = scratch.maximum[row] / Operand::kUnit + __builtin_logf(total);
  }
}

// A row of scores on its way to probabilities.
struct SoftRow {
  int64_t row;
  float factor, highest;
};

inline SoftRow start_row(const BlockView& view, int64_t row, float scale, float* scores) {
  const KeySpan& span = view.span_of(row);
  if (span.empty()) return {row, 0, 0};
  const float factor = finish_scores(view, row, scale, scores + row * kScoreStride);
  return {row, factor, row_maximum(scores + row * kScoreStride + span.begin, span.padded_end() - span.begin)};
}

// f(row, scores, width, factor, highest) for every row that has a span. Each row is started before the one ahead of it
// is given to f: its maximum is then known in time.
template <class F>
void for_each_soft_row(const BlockView& view, float scale, float* scores, const F& f) {
  SoftRow next = start_row(view, 0, scale, scores);
  for (int64_t row = 0; row < view.queries.size(); ++row) {
    const SoftRow current = next;
    if (row + 1 < view.queries.size()) next = start_row(view, row + 1, scale, scores);
    if (!view.span_of(row).empty()) f(current);
  }
}

// The scales of a head's keys and values, from its first key on.
template <class Scaling>
struct HeadScales {
  Scaling keys, values;
};

// The block's scores times the scales of its keys.
inline void scale_scores(const BlockView&, const Unscaled&, float*) {}
inline void scale_scores(const BlockView& view, const Scaled& of_keys, float* scores) {
  for (int64_t row = 0; row < view.queries.size(); ++row, scores += kScoreStride) {
    const KeySpan& span = view.span_of(row);
    for (int64_t i = span.begin; i < span.padded_end() && !span.empty(); i += kLanes)
      store(scores + i, of_keys(load(scores + i), view.keys.begin + i));
  }
}

// Softmax of the block's scores; rescales what the rows accumulated so far.
template <class Operand, class Scaling>
void soften_block(const BlockView& view, float scale, const Scaling& of_values, const Depth<Operand>& depth,
                  const ForwardScratch<Operand>& scratch) {
  for_each_soft_row(view, scale, scratch.scores, [&](const SoftRow& soft) {
    const KeySpan& span = view.span_of(soft.row);
    const int64_t first = soft.row * kScoreStride + span.begin;
    const float rescale =
        soften_row<Operand>(scratch.scores + first, span.padded_end() - span.begin, soft.factor * Operand::kUnit,
                            soft.highest, scratch.maximum[soft.row], scratch.sum[soft.row],
                            scratch.probabilities + first, of_values.from(view.keys.begin + span.begin));
    if (rescale != 1) scale_row(scratch.output + soft.row * depth.columns, depth.columns, rescale);
  });
}

// The running softmax over all blocks of keys; score(view) gives a block's scores, add(view) adds its weighted values
// to the output.
template <class Operand, class Scaling, class Score, class Add>
void accumulate_blocks(QueryRange queries, const HeadMask& mask, float scale, const HeadScales<Scaling>& scales,
                       const Depth<Operand>& depth, const ForwardScratch<Operand>& scratch, const Score& score,
                       const Add& add) {
  const int64_t rows = round_up(queries.size(), MatrixUnit::kRowsTogether);
  for (int64_t i = 0; i < rows * depth.columns; ++i) scratch.output[i] = 0;
  for (int64_t i = queries.size() * kScoreStride; i < rows * kScoreStride; ++i) scratch.probabilities[i] = {};
  for (int64_t i = 0; i < queries.size(); ++i) scratch.maximum[i] = -kInfinity, scratch.sum[i] = 0;
  KeyRange keys = {0, 0};
  while (mask.next_block(queries.begin, queries.end, keys)) {
    const BlockView view(mask, queries, keys);
    if (view.empty()) continue;
    score(view);
    scale_scores(view, scales.keys, scratch.scores);
    soften_block(view, scale, scales.values, depth, scratch);
    add(view);
  }
}

// The rows of a block one by one, without the values of dropped keys. `values` are the head's, where they lie.
template <class Operand, class Rows>
void add_attended_values(const BlockView& view, const Rows& values, const Depth<Operand>& depth,
                         const ForwardScratch<Operand>& scratch) {
  for (int64_t row = 0; row < view.queries.size(); ++row) {
    const KeySpan& span = view.span_of(row);
    const int64_t first = row * kScoreStride + span.begin;
    const auto row_of = [&](int64_t key) { return values[view.keys.begin + span.begin + key]; };
    add_attended(scratch.scores + first, scratch.probabilities + first, span.end - span.begin, row_of,
                 values.column_stride, depth.size, scratch.output + row * depth.columns);
  }
}

// out and lse of at most kQueryBlock queries, by these scores and sums.
template <class T, class Operand, class Rows, class Scaling, class Score, class Add>
void attend_blocks(const HeadRows<T>& rows, QueryRange queries, const HeadMask& mask, float scale,
                   const HeadScales<Scaling>& scales, const Rows& values, const Depth<Operand>& depth,
                   const ForwardScratch<Operand>& scratch, const Score& score, const Add& add) {
  stage_rows(rows.queries, queries.begin, queries.end, round_up(queries.size(), MatrixUnit::kRowsTogether), depth,
             scratch.queries);
  accumulate_blocks(queries, mask, scale, scales, depth, scratch, score, add);
  if (!all_finite(scratch.output, queries.size() * depth.columns)) {
    accumulate_blocks(queries, mask, scale, scales, depth, scratch, score,
                      [&](const BlockView& view) { add_attended_values(view, values, depth, scratch); });
  }
  store_block(rows, queries, depth, scratch);
}

// The same from packed keys and values.
template <class T, class Operand, class Rows, class Scaling = Unscaled>
void attend_block(const HeadRows<T>& rows, QueryRange queries, const HeadMask& mask, float scale,
                  const PackedHead<Operand>& packed, const Rows& values, const Depth<Operand>& depth,
                  const ForwardScratch<Operand>& scratch, const HeadScales<Scaling>& scales = {}) {
  const auto score = [&](const BlockView& view) {
    multiply_scores(scratch.queries, packed.keys, depth, view, scratch.scores);
  };
  const auto add = [&](const BlockView& view) {
    add_weighted(scratch.probabilities, packed.values, packed.values_panel_stride, depth, view, scratch.output);
  };
  attend_blocks(rows, queries, mask, scale, scales, values, depth, scratch, score, add);
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
