// Gradients of one head, a block of queries against a block of keys at a time. With P the probabilities and
// dP = dout v^T: dS = P (dP - delta), dv = P^T dout, dk = scale dS^T q, dq = scale dS k, where delta = sum(dout out) -
// dlse (Dao et al. 2022, arXiv:2205.14135, algorithm 4).
#pragma once

#include "kernels/attention_forward.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

// Columns past a row's last one that a tile of the transposed products reads.
constexpr int64_t kTileMargin = round_up(kSpanRows, kLanes);
constexpr int64_t kPairStride = kKeyBlock + kTileMargin;
// The rounding of a saved lse (2^-24 of it) shows in exp(score - lse) of float32, and of any storage above this bound:
// the sums are then taken anew.
constexpr float kLargestExactLse = 1024;

template <class Operand>
struct PackedGradHead {
  typename Operand::Group *keys, *values, *straight_keys;
  int64_t straight_panel_stride, rows;
  float *dkeys, *dvalues;

  PackedGradHead(Layout& layout, int64_t num_keys, const Depth<Operand>& depth)
      : straight_panel_stride(round_up(num_keys, MatrixUnit::kKeysTogether) / Operand::kGroup * kPanel),
        rows(round_up(num_keys, MatrixUnit::kRowsTogether)) {
    keys = layout.take<typename Operand::Group>(round_up(num_keys, kPanel) * depth.groups);
    values = layout.take<typename Operand::Group>(round_up(num_keys, kPanel) * depth.groups);
    straight_keys = layout.take<typename Operand::Group>(depth.panels() * straight_panel_stride);
    dkeys = layout.take<float>(rows * depth.columns);
    dvalues = layout.take<float>(rows * depth.columns);
  }
};

template <class Operand>
struct BackwardScratch {
  using Group = typename Operand::Group;
  static constexpr int64_t kStraightStride = kQueryBlock / Operand::kGroup * kPanel;
  Group *queries, *douts, *straight_queries, *straight_douts, *staged;
  Group *probabilities, *dscores;           // [query group][key]
  Group* transposed;                        // what the unit makes of one of them
  typename Operand::Element* dscores_left;  // [query][key]
  float *scores, *dprobabilities, *dqueries, *maximum, *sum, *delta, *shift, *inverse_sum;

  BackwardScratch(Layout& layout, const Depth<Operand>& depth) {
    queries = layout.take<Group>(kQueryBlock * depth.staged_groups);
    douts = layout.take<Group>(kQueryBlock * depth.staged_groups);
    straight_queries = layout.take<Group>(depth.panels() * kStraightStride);
    straight_douts = layout.take<Group>(depth.panels() * kStraightStride);
    staged = layout.take<Group>(kLanes * depth.staged_groups);
    probabilities = layout.take<Group>(kQueryBlock / Operand::kGroup * kPairStride);
    dscores = layout.take<Group>(kQueryBlock / Operand::kGroup * kPairStride);
    transposed = layout.take<Group>(MatrixUnit::transposed_size(kKeyBlock, kQueryBlock / Operand::kGroup));
    dscores_left = layout.take<typename Operand::Element>(kQueryBlock * kScoreStride);
    scores = layout.take<float>(kQueryBlock * kScoreStride);
    dprobabilities = layout.take<float>(kQueryBlock * kScoreStride);
    dqueries = layout.take<float>(kQueryBlock * depth.columns);
    maximum = layout.take<float>(kQueryBlock);
    sum = layout.take<float>(kQueryBlock);
    delta = layout.take<float>(kQueryBlock);
    shift = layout.take<float>(kQueryBlock);
    inverse_sum = layout.take<float>(kQueryBlock);
  }
};

struct RowValues {
  const float* data;  // null: zeros
  int64_t stride;
};

template <class T>
struct GradRows {
  StridedRows<T> queries, out, dout;
  RowValues lse, dlse;
  T* dqueries;
  int64_t dqueries_stride;
};

// In double: dP - delta cancels where one key holds all the probability, and float32's rounding would be what is left.
template <class T>
double dot(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t n) {
  DoubleVec sums{};
  int64_t i = 0;
  if (a_stride == 1 && b_stride == 1) {
    for (; i + kLanes <= n; i += kLanes) {
      sums += __builtin_convertvector(load(a + i), DoubleVec) * __builtin_convertvector(load(b + i), DoubleVec);
    }
  }
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sums[lane];
  for (; i < n; ++i) total += static_cast<double>(to_float(a[i * a_stride])) * to_float(b[i * b_stride]);
  return total;
}

template <class T>
void store_products(const float* row, int64_t size, float factor, T* to) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, load(row + i) * broadcast(factor));
  if (i < size) store_partial(to + i, load(row + i) * broadcast(factor), size - i);
}

// Maximum and sum of exp(score - maximum) of every row, as the forward pass had them before it rounded their lse.
template <class Operand>
void measure_rows(QueryRange queries, const HeadMask& mask, float scale, const PackedGradHead<Operand>& head,
                  const Depth<Operand>& depth, const BackwardScratch<Operand>& scratch) {
  for (int64_t row = 0; row < queries.size(); ++row) scratch.maximum[row] = -kInfinity, scratch.sum[row] = 0;
  KeyRange keys = {0, 0};
  while (mask.next_block(queries.begin, queries.end, keys)) {
    const BlockView view(mask, queries, keys);
    multiply_scores(scratch.queries, head.keys, depth, view, scratch.scores);
    for_each_soft_row(view, scale, scratch.scores, [&](const SoftRow& soft) {
      const KeySpan& span = view.span_of(soft.row);
      float* scores = scratch.scores + soft.row * kScoreStride + span.begin;
      soften_row<FloatOperand>(scores, span.padded_end() - span.begin, soft.factor, soft.highest,
                               scratch.maximum[soft.row], scratch.sum[soft.row], scores);
    });
  }
}

// P = exp(score - shift) inverse_sum. A row that sees nothing is shifted by +inf, which gives 0 for every score.
template <class T, class Operand>
void normalise_rows(const GradRows<T>& rows, QueryRange queries, const HeadMask& mask, float scale,
                    const PackedGradHead<Operand>& head, const Depth<Operand>& depth,
                    const BackwardScratch<Operand>& scratch) {
  bool exact = sizeof(T) < sizeof(float);
  for (int64_t row = 0; row < queries.size(); ++row) {
    const float lse = rows.lse.data[(queries.begin + row) * rows.lse.stride];
    scratch.shift[row] = lse == -kInfinity ? kInfinity : lse;
    scratch.inverse_sum[row] = 1;
    exact &= lse == -kInfinity || (lse <= kLargestExactLse && lse >= -kLargestExactLse);
  }
  if (exact) return;
  measure_rows(queries, mask, scale, head, depth, scratch);
  for (int64_t row = 0; row < queries.size(); ++row) {
    const bool empty = scratch.sum[row] == 0;
    scratch.shift[row] = empty ? kInfinity : scratch.maximum[row];
    scratch.inverse_sum[row] = empty ? 0 : 1 / scratch.sum[row];
  }
}

template <class T>
float row_delta(const GradRows<T>& rows, int64_t query, int64_t head_dim) {
  const double total =
      dot(rows.dout[query], rows.dout.column_stride, rows.out[query], rows.out.column_stride, head_dim);
  const float dlse = rows.dlse.data == nullptr ? 0 : rows.dlse.data[query * rows.dlse.stride];
  return static_cast<float>(total - dlse);
}

template <class T, class Operand>
void stage_queries(const GradRows<T>& rows, QueryRange queries, const Depth<Operand>& depth,
                   const BackwardScratch<Operand>& scratch) {
  const int64_t padded = round_up(queries.size(), MatrixUnit::kKeysTogether);
  stage_rows(rows.queries, queries.begin, queries.end, padded, depth, scratch.queries);
  stage_rows(rows.dout, queries.begin, queries.end, padded, depth, scratch.douts);
  for (int64_t row = 0; row < padded; row += kLanes) {
    const int64_t offset = row * depth.staged_groups;
    pack_straight(scratch.queries + offset, row, depth, scratch.straight_queries, scratch.kStraightStride);
    pack_straight(scratch.douts + offset, row, depth, scratch.straight_douts, scratch.kStraightStride);
  }
  for (int64_t row = 0; row < queries.size(); ++row) {
    scratch.delta[row] = row_delta(rows, queries.begin + row, depth.size);
  }
  const int64_t together = round_up(queries.size(), MatrixUnit::kRowsTogether);
  for (int64_t i = 0; i < together * depth.columns; ++i) scratch.dqueries[i] = 0;
  for (int64_t i = queries.size() * kScoreStride; i < together * kScoreStride; ++i) scratch.dscores_left[i] = {};
}

struct PairGradients {
  Vec p, ds;
};

// P and dS of a row and the keys from i on, of its scores and dP.
template <class Operand>
[[gnu::always_inline]] inline PairGradients differentiate_pairs(int64_t row, int64_t i, float factor,
                                                                const BackwardScratch<Operand>& scratch) {
  const int64_t at = row * kScoreStride + i;
  const Vec shift = broadcast(-scratch.shift[row] * Operand::kUnit);
  const Vec shifted = fma(load(scratch.scores + at), broadcast(factor * Operand::kUnit), shift);
  const Vec p = Operand::power(shifted) * broadcast(scratch.inverse_sum[row]);
  return {p, p * (load(scratch.dprobabilities + at) - broadcast(scratch.delta[row]))};
}

// One group of rows of P and dS over the keys [begin, end).
template <class Operand>
void differentiate_rows(int64_t row, int64_t num_rows, int64_t begin, int64_t end, float factor,
                        const BackwardScratch<Operand>& scratch) {
  auto* probabilities = scratch.probabilities + row / Operand::kGroup * kPairStride;
  auto* dscores = scratch.dscores + row / Operand::kGroup * kPairStride;
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec p[Operand::kGroup], ds[Operand::kGroup];
    for (int m = 0; m < Operand::kGroup; ++m) {
      p[m] = ds[m] = Vec{};
      if (m >= num_rows) continue;
      const PairGradients pairs = differentiate_pairs(row + m, i, factor, scratch);
      p[m] = pairs.p;
      ds[m] = pairs.ds;
      store(scratch.dscores_left + (row + m) * kScoreStride + i, ds[m]);
    }
    Operand::store_groups(probabilities + i, p);
    Operand::store_groups(dscores + i, ds);
  }
}

template <class Group>
void fill_zeros(Group* groups, int64_t begin, int64_t end) {
  if (begin < end) __builtin_memset(groups + begin, 0, (end - begin) * sizeof(Group));
}

// P and dS are zero where a row of tiles has no keys: the transposed products read on to their own tiles' ends.
template <class Operand>
void differentiate_block(const BlockView& view, float scale, const BackwardScratch<Operand>& scratch) {
  const int64_t end = round_up(view.keys.end - view.keys.begin, kLanes) + kTileMargin;
  for (int64_t row = 0; row < view.queries.size(); row += Operand::kGroup) {
    const KeySpan& span = view.span_of(row);
    const int64_t left = view.queries.size() - row, num_rows = left < Operand::kGroup ? left : Operand::kGroup;
    const int64_t begin = span.empty() ? end : span.begin;
    if (!span.empty()) {
      float factor = scale;
      for (int64_t m = 0; m < num_rows; ++m) {
        factor = finish_scores(view, row + m, scale, scratch.scores + (row + m) * kScoreStride);
      }
      differentiate_rows(row, num_rows, span.begin, span.padded_end(), factor, scratch);
    }
    const int64_t at = row / Operand::kGroup * kPairStride, last = span.empty() ? end : span.padded_end();
    fill_zeros(scratch.probabilities + at, 0, begin);
    fill_zeros(scratch.dscores + at, 0, begin);
    fill_zeros(scratch.probabilities + at, last, end);
    fill_zeros(scratch.dscores + at, last, end);
  }
  for (int64_t group = round_up(view.queries.size(), Operand::kGroup) / Operand::kGroup;
       group % MatrixUnit::kDepth != 0; ++group) {
    fill_zeros(scratch.probabilities + group * kPairStride, 0, end);
    fill_zeros(scratch.dscores + group * kPairStride, 0, end);
  }
}

// dkeys += dS^T q and dvalues += P^T dout for the keys of the block.
template <class Operand>
void accumulate_keys(const BlockView& view, const PackedGradHead<Operand>& head, const Depth<Operand>& depth,
                     const BackwardScratch<Operand>& scratch) {
  const int64_t num_keys = view.keys.end - view.keys.begin, offset = view.keys.begin * depth.columns;
  TileWork works[kKeyBlock / kSpanRows + 1];
  for (int64_t key = 0; key < num_keys; key += kSpanRows) {
    const QueryRange rows = view.rows_that_see(key);
    const GroupRange groups = {rows.begin / Operand::kGroup, round_up(rows.end, Operand::kGroup) / Operand::kGroup};
    works[key / kSpanRows] = {groups, 0, depth.size};
  }
  const auto work_of = [&](int64_t key) { return works[key / kSpanRows]; };
  const auto add = [&](const typename Operand::Group* pairs, const typename Operand::Group* straight, float* sums) {
    const int64_t count = round_up(view.queries.size(), Operand::kGroup) / Operand::kGroup;
    const auto left = MatrixUnit::transposed_left<Operand>(pairs, kPairStride, num_keys, count, scratch.transposed);
    MatrixUnit::multiply(left, num_keys, Right<Operand>{straight, scratch.kStraightStride}, depth.size, sums + offset,
                         depth.columns, true, work_of);
  };
  add(scratch.probabilities, scratch.straight_douts, head.dvalues);
  add(scratch.dscores, scratch.straight_queries, head.dkeys);
}

// What the three products add, one attended pair after the other. `keys` are the head's, where they lie.
template <class T, class Operand>
void add_attended_pairs(const BlockView& view, const GradRows<T>& rows, const StridedRows<T>& keys, float scale,
                        const PackedGradHead<Operand>& head, const Depth<Operand>& depth,
                        const BackwardScratch<Operand>& scratch) {
  const auto add = [&](float weight, const StridedRows<T>& from, int64_t row, float* to) {
    add_row(weight, from[row], from.column_stride, depth.size, to);
  };
  for (int64_t row = 0; row < view.queries.size(); ++row) {
    const KeySpan& span = view.span_of(row);
    if (span.empty()) continue;
    const int64_t query = view.queries.begin + row;
    float* scores = scratch.scores + row * kScoreStride;
    const float factor = finish_scores(view, row, scale, scores);
    for (int64_t i = span.begin; i < span.padded_end(); ++i) {
      if (is_dropped(scores[i])) continue;
      const int64_t first = i / kLanes * kLanes, key = view.keys.begin + i;
      const PairGradients pairs = differentiate_pairs(row, first, factor, scratch);
      add(pairs.p[i - first], rows.dout, query, head.dvalues + key * depth.columns);
      add(pairs.ds[i - first], rows.queries, query, head.dkeys + key * depth.columns);
      add(pairs.ds[i - first], keys, key, scratch.dqueries + row * depth.columns);
    }
  }
}

// dq of at most kQueryBlock queries; adds their share to the head's dkeys and dvalues. False if dq is not finite.
template <class T, class Operand>
bool differentiate_queries(const GradRows<T>& rows, const StridedRows<T>& key_rows, QueryRange queries,
                           const HeadMask& mask, float scale, bool pair_by_pair, const PackedGradHead<Operand>& head,
                           const Depth<Operand>& depth, const BackwardScratch<Operand>& scratch) {
  stage_queries(rows, queries, depth, scratch);
  normalise_rows(rows, queries, mask, scale, head, depth, scratch);
  KeyRange keys = {0, 0};
  while (mask.next_block(queries.begin, queries.end, keys)) {
    const BlockView view(mask, queries, keys);
    if (view.empty()) continue;
    multiply_scores(scratch.queries, head.keys, depth, view, scratch.scores);
    multiply_scores(scratch.douts, head.values, depth, view, scratch.dprobabilities);
    if (pair_by_pair) {
      add_attended_pairs(view, rows, key_rows, scale, head, depth, scratch);
      continue;
    }
    differentiate_block(view, scale, scratch);
    accumulate_keys(view, head, depth, scratch);
    add_weighted(scratch.dscores_left, head.straight_keys, head.straight_panel_stride, depth, view, scratch.dqueries);
  }
  for (int64_t row = 0; row < queries.size(); ++row) {
    store_products(scratch.dqueries + row * depth.columns, depth.size, scale,
                   rows.dqueries + (queries.begin + row) * rows.dqueries_stride);
  }
  return all_finite(scratch.dqueries, queries.size() * depth.columns);
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
