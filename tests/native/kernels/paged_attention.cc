// paged_attention: a batch of a prefill, a decode step, several tokens at once on a cache, and a row without tokens;
// with caches of the tokens' dtype, and of int8 with scales.
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

// Where a row's head has its keys or values; element 0 of a token.
struct Cache {
  const Guarded& tables;
  Sizes s;
  int64_t place(int64_t row, int64_t head, int64_t position) const {
    const int64_t block = static_cast<int64_t>(tables[row * s.max_blocks() + position / s.block_size]);
    return ((block * s.key_heads + head) * s.block_size + position % s.block_size) * s.size;
  }
};

// f(from, to) for each head of each of this step's tokens: where its elements begin, and where they belong.
template <class F>
void for_each_appended(const Cache& at, const F& f) {
  int64_t token = 0;
  for (int64_t row = 0; row < kBatch; ++row)
    for (int64_t i = 0; i < kRows[row].this_time; ++i, ++token)
      for (int64_t head = 0; head < at.s.key_heads; ++head)
        f((token * at.s.key_heads + head) * at.s.size, at.place(row, head, kRows[row].decoder + i));
}

// This step's keys or values where they belong.
Doubles appended(const Guarded& cache, const Guarded& tokens, const Cache& at) {
  Doubles result = values(cache);
  for_each_appended(at, [&](int64_t from, int64_t to) {
    for (int64_t d = 0; d < at.s.size; ++d) result[to + d] = tokens[from + d];
  });
  return result;
}

// A cache of int8 and the scales of its tokens.
struct Coded {
  Doubles codes, scales;
  Doubles values(int64_t size) const {
    Doubles all(codes.size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = codes[i] * scales[i / size];
    return all;
  }
};

// The same in codes: the nearest multiples of a 127th of the largest.
Coded appended(const Guarded& codes, const Guarded& scales, const Guarded& tokens, const Cache& at) {
  Coded result{values(codes), values(scales)};
  for_each_appended(at, [&](int64_t from, int64_t to) {
    float largest = 0;
    for (int64_t d = 0; d < at.s.size; ++d)
      largest = std::max(largest, static_cast<float>(std::fabs(tokens[from + d])));
    const float scale = std::max(largest / 127, 0x1p-126f);
    result.scales[to / at.s.size] = scale;
    for (int64_t d = 0; d < at.s.size; ++d)
      result.codes[to + d] = std::nearbyint(static_cast<float>(tokens[from + d]) / scale);
  });
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

int64_t num_tokens() {
  int64_t count = 0;
  for (const Row& row : kRows) count += row.this_time;
  return count;
}

std::string name(const char* cache, DType dtype, const Sizes& s) {
  return std::string("paged_attention ") + cache + dtype_name(dtype) + " " +
         text({s.heads, s.key_heads, s.size, s.block_size, s.window});
}

void check(DType dtype, const Sizes& s) {
  begin_case(name("", dtype, s));
  const double scale = 0.25 / std::sqrt(static_cast<double>(s.size));
  const int64_t tokens = num_tokens();
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

Guarded random_codes(const Shape& shape) {
  return filled(DType::kInt8, shape, [](int64_t) { return static_cast<double>(random_below(255) - 127); });
}

Guarded random_scales(const Shape& shape) {
  return filled(DType::kFloat32, shape, [](int64_t) { return static_cast<double>(1 + random_below(8)) / 512; });
}

void check_int8(DType dtype, const Sizes& s) {
  begin_case(name("int8 ", dtype, s));
  const double scale = 0.25 / std::sqrt(static_cast<double>(s.size));
  const int64_t tokens = num_tokens(), num_blocks = kBatch * s.max_blocks();
  const Guarded q = random(dtype, {tokens, s.heads, s.size});
  const Guarded k = random(dtype, {tokens, s.key_heads, s.size}), v = random(dtype, {tokens, s.key_heads, s.size});
  const Shape slots{num_blocks, s.key_heads, s.block_size}, elements{num_blocks, s.key_heads, s.block_size, s.size};
  const Guarded key_cache = random_codes(elements), value_cache = random_codes(elements);
  const Guarded key_scales = random_scales(slots), value_scales = random_scales(slots);
  const Guarded tables = shuffled_tables(s.max_blocks());
  const Cache at{tables, s};
  const Coded keys = appended(key_cache, key_scales, k, at), cached = appended(value_cache, value_scales, v, at);
  const Doubles want = attend(values(q), keys.values(s.size), cached.values(s.size), at, scale);
  for (bool batch_invariant : {false, true}) {
    Guarded out(dtype, {tokens, s.heads, s.size});
    fusionkit_cpu::paged_attention(q, k, v, key_cache, value_cache, tables, lengths(&Row::encoder),
                                   lengths(&Row::decoder), lengths(&Row::this_time), static_cast<float>(scale),
                                   s.window, out, batch_invariant, key_scales, value_scales);
    expect_equal("key_cache", key_cache, keys.codes);
    expect_equal("value_cache", value_cache, cached.codes);
    expect_equal("key_scales", key_scales, keys.scales);
    expect_equal("value_scales", value_scales, cached.scales);
    expect_close(batch_invariant ? "out, batch invariant" : "out", out, want, {32, 1.5});
  }
}

}  // namespace

void check_paged_attention(DType dtype) {
  for (const Sizes& sizes : {Sizes{1, 1, 16, 7, 0}, Sizes{4, 2, 17, 8, 0}, Sizes{6, 2, 33, 16, 0},
                             Sizes{4, 4, 64, 32, 0}, Sizes{4, 2, 17, 8, 5}, Sizes{6, 2, 33, 16, 100}}) {
    check(dtype, sizes);
    check_int8(dtype, sizes);
  }
}

}  // namespace kernel_tests
