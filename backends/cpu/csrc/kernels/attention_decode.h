// Attention of a few queries on a long cache: reads every key and value once, where it lies. Packing them for the
// register tiles of attention_forward.h would cost more than the products.
#pragma once

#include "kernels/attention_forward.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kDecodeBlock = 64;  // keys; three times their rows, 48 KiB of bfloat16 at head_dim 128, are in flight
constexpr int64_t kMostDecodeQueries = 8;  // above it packing pays
constexpr int kDecodeKeys = 4;             // keys at a time, for independent sums
constexpr int kDecodeVectors = 8;          // of the output in registers

template <class T>
struct DecodeQuery {
  const T* query;
  T* out;
  int64_t num_keys;  // visible to it: the first ones
};

struct DecodeScratch {
  float *queries, *output, *scores, *probabilities;
  float maximum[kMostDecodeQueries], sum[kMostDecodeQueries];
  int64_t columns;

  DecodeScratch(Layout& layout, int64_t head_dim) : columns(round_up(head_dim, kLanes)) {
    queries = layout.take<float>(kMostDecodeQueries * columns);
    output = layout.take<float>(kMostDecodeQueries * columns);
    scores = layout.take<float>(kMostDecodeQueries * kDecodeBlock);
    probabilities = layout.take<float>(kMostDecodeQueries * kDecodeBlock);
  }
};

template <class T>
void score_keys(const float* query, const T* const* keys, int64_t head_dim, float scale, float* scores) {
  Vec sums[kDecodeKeys] = {};
  int64_t i = 0;
  for (; i + kLanes <= head_dim; i += kLanes) {
    const Vec q = load(query + i);
#pragma GCC unroll 8
    for (int n = 0; n < kDecodeKeys; ++n) sums[n] = fma(q, load(keys[n] + i), sums[n]);
  }
  if (i < head_dim) {
    const Vec q = load(query + i);
    for (int n = 0; n < kDecodeKeys; ++n) sums[n] = fma(q, load_partial(keys[n] + i, head_dim - i), sums[n]);
  }
#pragma GCC unroll 8
  for (int n = 0; n < kDecodeKeys; ++n) scores[n] = sum_lanes(sums[n]) * scale;
}

// output += sum over the keys of their probability times kVectors vectors of their value, from `column` on.
template <int kVectors, class T>
void add_values(const float* probabilities, const T* const* values, int64_t num_keys, int64_t column, float* output) {
  Vec sums[kVectors] = {};
  for (int64_t key = 0; key < num_keys; ++key) {
    const Vec p = broadcast(probabilities[key]);
    const T* value = values[key] + column;
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) sums[n] = fma(p, load(value + n * kLanes), sums[n]);
  }
#pragma GCC unroll 8
  for (int n = 0; n < kVectors; ++n) {
    float* to = output + column + n * kLanes;
    store(to, load(to) + sums[n]);
  }
}

template <class T>
void add_all_values(const float* probabilities, const T* const* values, int64_t num_keys, int64_t head_dim,
                    float* output) {
  int64_t i = 0;
  for (; i + kDecodeVectors * kLanes <= head_dim; i += kDecodeVectors * kLanes) {
    add_values<kDecodeVectors>(probabilities, values, num_keys, i, output);
  }
  for (; i + kLanes <= head_dim; i += kLanes) add_values<1>(probabilities, values, num_keys, i, output);
  if (i == head_dim) return;
  Vec sums{};
  for (int64_t key = 0; key < num_keys; ++key) {
    sums = fma(broadcast(probabilities[key]), load_partial(values[key] + i, head_dim - i), sums);
  }
  store(output + i, load(output + i) + sums);
}

// Where the keys and values of a block lie; past the end, the last one again.
template <class T>
struct DecodeRows {
  const T *keys[kDecodeBlock], *values[kDecodeBlock];

  void locate(const PagedRows<T>& key_rows, const PagedRows<T>& value_rows, int64_t first, int64_t num_keys) {
    int64_t key = first < num_keys ? first : num_keys - 1;
    keys[0] = key_rows[key];
    values[0] = value_rows[key];
    for (int64_t i = 1, left = key_rows.left_in_block(key); i < kDecodeBlock; ++i) {
      keys[i] = keys[i - 1];
      values[i] = values[i - 1];
      if (key + 1 >= num_keys) continue;
      ++key;
      if (--left > 0) {
        keys[i] += key_rows.row_stride;
        values[i] += value_rows.row_stride;
      } else {
        keys[i] = key_rows[key];
        values[i] = value_rows[key];
        left = key_rows.left_in_block(key);
      }
    }
  }
};

// Into the first level: asked into the second, bfloat16 took twice as long (Zen 5).
template <class T>
void prefetch_values(const T* row, int64_t head_dim) {
  for (int64_t i = 0; i < head_dim; i += 64 / sizeof(T)) __builtin_prefetch(row + i, 0, 3);
}

template <class T>
void decode_block(const DecodeRows<T>& rows, const DecodeRows<T>& next, int64_t num_keys, int64_t head_dim, float scale,
                  int64_t row, DecodeScratch& scratch) {
  float* scores = scratch.scores + row * kDecodeBlock;
  float* probabilities = scratch.probabilities + row * kDecodeBlock;
  float* output = scratch.output + row * scratch.columns;
  for (int64_t key = 0; key < num_keys; key += kDecodeKeys) {
    for (int64_t i = key; row == 0 && i < key + kDecodeKeys; ++i) {
      prefetch_values(rows.values[i], head_dim);
      prefetch_values(next.keys[i], head_dim);
    }
    score_keys(scratch.queries + row * scratch.columns, rows.keys + key, head_dim, scale, scores + key);
  }
  const int64_t width = round_up(num_keys, kLanes);
  for (int64_t key = num_keys; key < width; ++key) scores[key] = -kInfinity;
  const float rescale =
      soften_row<FloatOperand>(scores, width, 1, row_maximum(scores, width), scratch.maximum[row], scratch.sum[row],
                               probabilities);
  if (rescale != 1) scale_row(output, scratch.columns, rescale);
  add_all_values(probabilities, rows.values, num_keys, head_dim, output);
}

template <class T>
void start_query(const DecodeQuery<T>& query, int64_t stride, int64_t head_dim, int64_t row, DecodeScratch& scratch) {
  for (int64_t i = 0; i < scratch.columns; ++i) {
    scratch.queries[row * scratch.columns + i] = i < head_dim ? to_float(query.query[i * stride]) : 0;
    scratch.output[row * scratch.columns + i] = 0;
  }
  scratch.maximum[row] = -kInfinity;
  scratch.sum[row] = 0;
}

// The queries of one head group, each of which sees at least one key.
template <class T>
void decode(const DecodeQuery<T>* queries, int64_t num_queries, const PagedRows<T>& keys, const PagedRows<T>& values,
            int64_t query_stride, int64_t head_dim, float scale, DecodeScratch& scratch) {
  int64_t num_keys = 0;
  for (int64_t row = 0; row < num_queries; ++row) {
    start_query(queries[row], query_stride, head_dim, row, scratch);
    num_keys = queries[row].num_keys > num_keys ? queries[row].num_keys : num_keys;
  }
  DecodeRows<T> blocks[2];
  blocks[0].locate(keys, values, 0, num_keys);
  for (int64_t first = 0; first < num_keys; first += kDecodeBlock) {
    const DecodeRows<T>& block = blocks[first / kDecodeBlock % 2];
    DecodeRows<T>& next = blocks[(first / kDecodeBlock + 1) % 2];
    next.locate(keys, values, first + kDecodeBlock, num_keys);
    for (int64_t row = 0; row < num_queries; ++row) {
      const int64_t seen = clamp(queries[row].num_keys - first, 0, kDecodeBlock);
      if (seen > 0) decode_block(block, next, seen, head_dim, scale, row, scratch);
    }
  }
  for (int64_t row = 0; row < num_queries; ++row) {
    store_quotients(scratch.output + row * scratch.columns, head_dim, scratch.sum[row], queries[row].out);
  }
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
