// Attention of a few queries on many keys: every key and value is read once, where it lies. Packing them for the
// register tiles of attention_forward.h would cost more than the products.
#pragma once

#include "buffer.h"
#include "kernels/attention_decode_rows.h"
#include "kernels/attention_forward.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kMostDecodeQueries = 8;   // above it packing pays
constexpr int64_t kFewestDecodeKeys = 256;  // of a part

template <class T>
struct DecodeQuery {
  const T* query;
  T* out;
  float* lse;        // may be null
  int64_t num_keys;  // it sees the keys [first_key, num_keys)
  int64_t first_key = 0;
};

// The queries of one head group.
template <class T>
struct DecodeQueries {
  DecodeQuery<T> at[kMostDecodeQueries];
  int64_t count = 0;
  void add(const DecodeQuery<T>& query) { at[count++] = query; }
};

// What the queries of a group have from some keys.
struct DecodeState {
  float *output, *maximum, *sum;
  int64_t columns;

  DecodeState(Layout& layout, int64_t columns) : columns(columns) {
    output = layout.take<float>(kMostDecodeQueries * columns);
    maximum = layout.take<float>(kMostDecodeQueries);
    sum = layout.take<float>(kMostDecodeQueries);
  }
  float* output_of(int64_t row) const { return output + row * columns; }
  void clear() const {
    for (int64_t i = 0; i < kMostDecodeQueries * columns; ++i) output[i] = 0;
    for (int64_t i = 0; i < kMostDecodeQueries; ++i) maximum[i] = -kInfinity, sum[i] = 0;
  }
};

template <class Operand>
struct DecodeScratch {
  typename Operand::Group* queries;
  float* scores;                             // [query][key]
  typename Operand::Element* keys;           // [kLanes][column], of codes
  typename Operand::Element* probabilities;  // [query][key]

  DecodeScratch(Layout& layout, const Depth<Operand>& depth) {
    queries = layout.take<typename Operand::Group>(kMostDecodeQueries * depth.staged_groups);
    scores = layout.take<float>(kMostDecodeQueries * kDecodeBlock);
    keys = layout.take<typename Operand::Element>(kLanes * depth.columns);
    probabilities = layout.take<typename Operand::Element>(kMostDecodeQueries * kDecodeBlock);
  }
};

// One step of sum_each: pairs of vectors become one that holds the sums of lanes kWidth apart.
template <int kWidth>
[[gnu::always_inline]] inline void fold(Vec* sums) {
  UintVec near{}, far{};
  for (int lane = 0; lane < kLanes; ++lane) {
    near[lane] = (lane & kWidth) == 0 ? lane : kLanes + lane - kWidth;
    far[lane] = near[lane] + kWidth;
  }
#pragma GCC unroll 8
  for (int n = 0; n < kWidth; ++n) {
    const Vec a = sums[n], b = sums[n + kWidth];
    sums[n] = __builtin_shuffle(a, b, near) + __builtin_shuffle(a, b, far);
  }
}

// The sum of the lanes of sums[n] in lane n.
[[gnu::always_inline]] inline Vec sum_each(Vec* sums) {
  if constexpr (kLanes > 8) fold<8>(sums);
  if constexpr (kLanes > 4) fold<4>(sums);
  fold<2>(sums);
  fold<1>(sums);
  return sums[0];
}

// Scores of one query against kLanes keys. Asks for the rows `ahead` meanwhile where kAhead.
template <bool kAhead, class T, class Operand>
Vec score_keys(const typename Operand::Group* query, const T* const* keys, const T* const* ahead, int64_t head_dim) {
  constexpr int64_t kStep = kLanes * Operand::kGroup;
  Vec sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kStep <= head_dim; i += kStep) {
    const auto q = Operand::load_groups(query + i / Operand::kGroup);
#pragma GCC unroll 16
    for (int n = 0; n < kLanes; ++n) {
      if (kAhead && asks_ahead<T>(i)) prefetch_values(ahead[n] + i, kStep);
      sums[n] = Operand::multiply_add(q, RowGroups<T, Operand>::load_some(keys[n] + i, kStep), sums[n]);
    }
  }
  if (i < head_dim) {
    const auto q = Operand::load_groups(query + i / Operand::kGroup);
#pragma GCC unroll 16
    for (int n = 0; n < kLanes; ++n) {
      sums[n] = Operand::multiply_add(q, RowGroups<T, Operand>::load_some(keys[n] + i, head_dim - i), sums[n]);
    }
  }
  return sum_each(sums);
}

// Columns [column, column + kVectors * kLanes) of the output of kQueries queries: += probability times value over the
// keys. The rows of probabilities and of the output have these strides; columns from output_stride on are not there.
// Asks for the same columns of the rows `ahead` meanwhile.
template <int kQueries, int kVectors, bool kWhole, class T, class Operand>
void add_values(const typename Operand::Element* probabilities, int64_t probability_stride, const T* const* values,
                const T* const* ahead, int64_t num_keys, int64_t column, int64_t head_dim, float* output,
                int64_t output_stride) {
  Vec sums[kQueries][kVectors] = {};
  for (int64_t key = 0; key < num_keys; key += Operand::kGroup) {
    typename Operand::Register v[kVectors];
    for (int n = 0; kWhole && n < Operand::kGroup; ++n) prefetch_values(ahead[key + n] + column, kVectors * kLanes);
    RowGroups<T, Operand>::template interleave<kVectors, kWhole>(values + key, column, head_dim, v);
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) {
      const auto* at = probabilities + q * probability_stride + key;
      const auto p = Operand::broadcast_group(reinterpret_cast<const typename Operand::Group*>(at));
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sums[q][n] = Operand::multiply_add(p, v[n], sums[q][n]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) {
      if (!kWhole && column + n * kLanes >= output_stride) continue;
      float* to = output + q * output_stride + column + n * kLanes;
      store(to, load(to) + sums[q][n]);
    }
}

// Of `count` queries, at most kQueries.
template <int kQueries, class T, class Operand>
void add_all_values(int64_t count, const typename Operand::Element* probabilities, int64_t probability_stride,
                    const T* const* values, const T* const* ahead, int64_t num_keys, int64_t head_dim, float* output,
                    int64_t output_stride) {
  if constexpr (kQueries > 1) {
    if (count < kQueries) {
      add_all_values<kQueries - 1, T, Operand>(count, probabilities, probability_stride, values, ahead, num_keys,
                                               head_dim, output, output_stride);
      return;
    }
  }
  constexpr int kMost = kQueries == 1 ? 2 * kDecodeVectors : kDecodeVectors;
  int64_t column = 0;
  for (; column + kMost * kLanes <= head_dim; column += kMost * kLanes) {
    add_values<kQueries, kMost, true, T, Operand>(probabilities, probability_stride, values, ahead, num_keys, column,
                                                  head_dim, output, output_stride);
  }
  for (; column < head_dim; column += kDecodeVectors * kLanes) {
    add_values<kQueries, kDecodeVectors, false, T, Operand>(probabilities, probability_stride, values, ahead, num_keys,
                                                            column, head_dim, output, output_stride);
  }
}

// Scores of every query against kLanes keys of the block, from `key` on.
template <class Element, class Operand>
void score_block(const DecodeRows<Element>& rows, int64_t key, int64_t num_queries, const Depth<Operand>& depth,
                 const DecodeScratch<Operand>& scratch) {
  for (int64_t row = 0; row < num_queries; ++row) {
    const auto* query = scratch.queries + row * depth.staged_groups;
    const auto score = row == 0 ? score_keys<true, Element, Operand> : score_keys<false, Element, Operand>;
    store(scratch.scores + row * kDecodeBlock + key, score(query, rows.keys + key, rows.values + key, depth.size));
  }
}

// Codes that several queries multiply are converted once.
template <class Operand>
void score_block(const DecodeRows<Code>& rows, int64_t key, int64_t num_queries, const Depth<Operand>& depth,
                 const DecodeScratch<Operand>& scratch) {
  using Element = typename Operand::Element;
  if (num_queries == 1) return score_block<Code, Operand>(rows, key, num_queries, depth, scratch);
  const Element* keys[kLanes];
  for (int64_t n = 0; n < kLanes; ++n) {
    prefetch_values(rows.values[key + n], depth.size);
    copy_row(rows.keys[key + n], scratch.keys + n * depth.columns, depth.size);
    keys[n] = scratch.keys + n * depth.columns;
  }
  for (int64_t row = 0; row < num_queries; ++row) {
    const auto* query = scratch.queries + row * depth.staged_groups;
    const Vec scores = score_keys<false, Element, Operand>(query, keys, keys, depth.size);
    store(scratch.scores + row * kDecodeBlock + key, scores);
  }
}

// Probabilities of a block's keys for every query; rescales what the queries accumulated so far.
template <class Element, class T, class Operand>
void soften_keys(const DecodeRows<Element>& rows, int64_t first_key, const DecodeQueries<T>& queries,
                 const Depth<Operand>& depth, float factor, const DecodeScratch<Operand>& scratch,
                 const DecodeState& state) {
  const int64_t width = round_up(rows.count, kLanes);
  for (int64_t key = 0; key < width; key += kLanes) score_block(rows, key, queries.count, depth, scratch);
  for (int64_t row = 0; row < queries.count; ++row) {
    float* scores = scratch.scores + row * kDecodeBlock;
    const auto of_keys = rows.scales.of_keys();
    for (int64_t i = 0; i < width; i += kLanes) store(scores + i, of_keys(load(scores + i) * broadcast(factor), i));
    const DecodeQuery<T>& query = queries.at[row];
    for (int64_t i = 0; i < clamp(query.first_key - first_key, 0, rows.count); ++i) scores[i] = -kInfinity;
    for (int64_t i = clamp(query.num_keys - first_key, 0, rows.count); i < width; ++i) scores[i] = -kInfinity;
    const float rescale =
        soften_row<Operand>(scores, width, Operand::kUnit, row_maximum(scores, width), state.maximum[row],
                            state.sum[row], scratch.probabilities + row * kDecodeBlock, rows.scales.of_values());
    if (rescale != 1) scale_row(state.output_of(row), state.columns, rescale);
  }
}

// The block's values into every query's output. Asks for the keys of the next block meanwhile.
template <class T, class Operand>
void add_block_values(const DecodeRows<T>& rows, const DecodeRows<T>& next, int64_t num_queries,
                      const Depth<Operand>& depth, const DecodeScratch<Operand>& scratch, const DecodeState& state) {
  const int64_t num_keys = round_up(rows.count, Operand::kGroup);
  for (int64_t row = 0, count; row < num_queries; row += count) {
    count = clamp(num_queries - row, 1, kDecodeQueriesAtOnce);
    add_all_values<kDecodeQueriesAtOnce, T, Operand>(count, scratch.probabilities + row * kDecodeBlock, kDecodeBlock,
                                                     rows.values, row == 0 ? next.keys : rows.keys, num_keys,
                                                     depth.size, state.output_of(row), state.columns);
  }
}

// The same without the values of keys that a query does not see.
template <class T, class Operand>
void add_seen_values(const DecodeRows<T>& rows, int64_t num_queries, const Depth<Operand>& depth,
                     const DecodeScratch<Operand>& scratch, const DecodeState& state) {
  for (int64_t row = 0; row < num_queries; ++row) {
    const int64_t first = row * kDecodeBlock;
    add_attended(
        scratch.scores + first, scratch.probabilities + first, rows.count,
        [&](int64_t key) { return rows.values[key]; }, 1, depth.size, state.output_of(row));
  }
}

// f(block, next, first key) for the blocks of the keys of the range.
template <class T, class Rows, class F>
void for_each_decode_block(const Rows& keys, const Rows& values, KeyRange range, const F& f) {
  if (range.begin >= range.end) return;
  DecodeRows<T> blocks[2];
  DecodeRows<T>*current = &blocks[0], *next = &blocks[1];
  current->locate(keys, values, range.begin, range.end);
  for (int64_t first = range.begin; first < range.end; first += kDecodeBlock) {
    next->locate(keys, values, first + kDecodeBlock, range.end);
    f(*current, *next, first);
    DecodeRows<T>* done = current;
    current = next;
    next = done;
  }
}

// The state of the queries of a group after the keys [begin, end).
template <class T, class Operand, class Rows>
void decode(const DecodeQueries<T>& queries, int64_t query_stride, const Rows& keys, const Rows& values, KeyRange range,
            const Depth<Operand>& depth, float scale, const DecodeScratch<Operand>& scratch, const DecodeState& state) {
  state.clear();
  for (int64_t row = 0; row < queries.count; ++row) {
    const StridedRows<T> query = {queries.at[row].query, 0, query_stride};
    stage_rows(query, 0, 1, 1, depth, scratch.queries + row * depth.staged_groups);
  }
  using Element = typename Rows::Element;
  using Block = DecodeRows<Element>;
  for_each_decode_block<Element>(keys, values, range, [&](const Block& block, const Block& next, int64_t first) {
    soften_keys(block, first, queries, depth, scale, scratch, state);
    add_block_values(block, next, queries.count, depth, scratch, state);
  });
  if (all_finite(state.output, queries.count * state.columns)) return;
  state.clear();
  for_each_decode_block<Element>(keys, values, range, [&](const Block& block, const Block&, int64_t first) {
    soften_keys(block, first, queries, depth, scale, scratch, state);
    add_seen_values(block, queries.count, depth, scratch, state);
  });
}

// The states of every unit, (batch, kv_head), whose keys are split where there are too few units for the threads.
class DecodeParts {
 public:
  DecodeParts(int64_t units, int64_t most_keys, int64_t columns)
      : count_(units == 0 ? 1
                          : clamp(4 * num_threads() / units, 1, clamp(most_keys / kFewestDecodeKeys, 1, INT64_MAX))),
        columns_(round_up(columns, kDecodeVectors * kLanes)),  // whole stores of add_values
        buffer_(units * count_ * size()) {}

  int64_t count() const { return count_; }
  KeyRange keys_of(int64_t part, KeyRange all) const {
    const int64_t size = round_up((all.end - all.begin + count_ - 1) / count_, kLanes);
    const auto bound = [&](int64_t place) { return clamp(all.begin + place * size, all.begin, all.end); };
    return {bound(part), bound(part + 1)};
  }
  DecodeState state(int64_t unit, int64_t part) const {
    Layout layout(buffer_.as<char>() + (unit * count_ + part) * size());
    return DecodeState(layout, columns_);
  }

 private:
  size_t size() const {
    Layout counted(nullptr);
    DecodeState(counted, columns_);
    return counted.size();
  }
  const int64_t count_, columns_;
  const Buffer buffer_;
};

// Adds the states of a unit's parts to the first, in their order, and stores the results.
template <class T, class Operand>
void finish_decode(const DecodeQueries<T>& queries, const DecodeParts& parts, int64_t unit, int64_t head_dim) {
  const DecodeState total = parts.state(unit, 0);
  for (int64_t row = 0; row < queries.count; ++row) {
    for (int64_t part = 1; part < parts.count(); ++part) {
      const DecodeState other = parts.state(unit, part);
      const Shift shift = raise_maximum<Operand>(total.maximum[row], other.maximum[row]);
      const float factor = Operand::power(broadcast(other.maximum[row] - shift.amount))[0];
      for (int64_t i = 0; i < total.columns; i += kLanes) {
        const Vec scaled = load(total.output_of(row) + i) * broadcast(shift.rescale);
        store(total.output_of(row) + i, fma(load(other.output_of(row) + i), broadcast(factor), scaled));
      }
      total.maximum[row] = shift.maximum;
      total.sum[row] = total.sum[row] * shift.rescale + other.sum[row] * factor;
    }
    const DecodeQuery<T>& query = queries.at[row];
    store_quotients(total.output_of(row), head_dim, total.sum[row] == 0 ? 1 : total.sum[row], query.out);
    if (query.lse != nullptr) *query.lse = total.maximum[row] / Operand::kUnit + __builtin_logf(total.sum[row]);
  }
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
