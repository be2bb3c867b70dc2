// paged_attention: a batch of a prefill, a decode step, several tokens at once on a cache, and a row without tokens.
#include "paged_attention.h"

#include <algorithm>

#include "attention_oracle.h"

namespace kernel_tests {
namespace {

struct Row {
  int64_t encoder, decoder, this_time;
};

constexpr Row kRows[] = {{9, 0, 9}, {0, 21, 1}, {0, 0, 0}, {0, 5, 3}, {0, 300, 1}};
constexpr int64_t kBatch = 5, kMaxPositions = 301;

struct Sizes {
  int64_t heads, key_heads, size, block_size, window;
  int64_t max_blocks() const { return (kMaxPositions + block_size - 1) / block_size; }  // of a row
};

Guarded lengths(int64_t Row::* field) {
  return filled(DType::kInt32, {kBatch}, [&](int64_t i) { return kRows[i].*field; });
}

// Blocks of all rows in one shuffled order, so that no row's blocks are neighbours.
Guarded shuffled_tables(int64_t max_blocks) {
  std::vector<int64_t> blocks(kBatch * max_blocks);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int64_t>(i);
  for (size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[random_below(static_cast<int64_t>(i))]);
  return filled(DType::kInt32, {kBatch, max_blocks}, [&](int64_t i) { return blocks[i]; });
}

struct Cache {
  const Guarded& tables;
  Sizes s;
  int64_t place(int64_t row, int64_t head, int64_t position) const {
    const int64_t block = static_cast<int64_t>(tables[row * s.max_blocks() + position / s.block_size]);
    return ((block * s.key_heads + head) * s.block_size + position % s.block_size) * s.size;
  }
};

// This step's keys or values where they belong.
Doubles appended(const Guarded& cache, const Guarded& tokens, const Cache& at) {
  Doubles result = values(cache);
  int64_t token = 0;
  for (int64_t row = 0; row < kBatch; ++row)
    for (int64_t i = 0; i < kRows[row].this_time; ++i, ++token)
      for (int64_t head = 0; head < at.s.key_heads; ++head) {
        const int64_t to = at.place(row, head, kRows[row].decoder + i),
                      from = (token * at.s.key_heads + head) * at.s.size;
        for (int64_t d = 0; d < at.s.size; ++d) result[to + d] = tokens[from + d];
      }
  return result;
}

Doubles attend(const Doubles& q, const Doubles& keys, const Doubles& values, const Cache& at, double scale) {
  const Sizes& s = at.s;
  Doubles out(q.size());
  int64_t from = 0;
  for (int64_t row = 0; row < kBatch; ++row)
    for (int64_t i = 0; i < kRows[row].this_time; ++i)
      for (int64_t h = 0; h < s.heads; ++h, from += s.size) {
        const int64_t head = h / (s.heads / s.key_heads);
        const int64_t seen = kRows[row].decoder + i + 1,
                      first = s.window > 0 ? std::max<int64_t>(0, seen - s.window) : 0;
        Doubles scores(seen - first);
        for (size_t j = 0; j < scores.size(); ++j) {
          const int64_t key = at.place(row, head, first + j);
          for (int64_t d = 0; d < s.size; ++d) scores[j] += scale * q[from + d] * keys[key + d];
        }
        const Doubles p = softmax(scores).of_key;
        for (size_t j = 0; j < p.size(); ++j) {
          const int64_t value = at.place(row, head, first + j);
          for (int64_t d = 0; d < s.size; ++d) out[from + d] += p[j] * values[value + d];
        }
      }
  return out;
}

void check(DType dtype, const Sizes& s) {
  begin_case(std::string("paged_attention ") + dtype_name(dtype) + " " +
             text({s.heads, s.key_heads, s.size, s.block_size, s.window}));
  const double scale = 0.25 / std::sqrt(static_cast<double>(s.size));
  int64_t tokens = 0;
  for (const Row& row : kRows) tokens += row.this_time;
  const Guarded q = random(dtype, {tokens, s.heads, s.size});
  const Guarded k = random(dtype, {tokens, s.key_heads, s.size}), v = random(dtype, {tokens, s.key_heads, s.size});
  const Shape cache_shape{kBatch * s.max_blocks(), s.key_heads, s.block_size, s.size};
  const Guarded key_cache = random(dtype, cache_shape), value_cache = random(dtype, cache_shape);
  const Guarded tables = shuffled_tables(s.max_blocks());
  const Cache at{tables, s};
  const Doubles keys = appended(key_cache, k, at), cached_values = appended(value_cache, v, at);
  const Doubles want = attend(values(q), keys, cached_values, at, scale);
  for (bool batch_invariant : {false, true}) {
    Guarded out(dtype, {tokens, s.heads, s.size});
    fusionkit_cpu::paged_attention(q, k, v, key_cache, value_cache, tables, lengths(&Row::encoder),
                                   lengths(&Row::decoder), lengths(&Row::this_time), static_cast<float>(scale),
                                   s.window, out, batch_invariant);
    expect_equal("key_cache", key_cache, keys);
    expect_equal("value_cache", value_cache, cached_values);
    expect_close(batch_invariant ? "out, batch invariant" : "out", out, want, {32, 1.5});
  }
}

}  // namespace

void check_paged_attention(DType dtype) {
  for (const Sizes& sizes : {Sizes{1, 1, 16, 7, 0}, Sizes{4, 2, 17, 8, 0}, Sizes{6, 2, 33, 16, 0},
                             Sizes{4, 4, 64, 32, 0}, Sizes{4, 2, 17, 8, 5}, Sizes{6, 2, 33, 16, 100}})
    check(dtype, sizes);
}

}  // namespace kernel_tests
