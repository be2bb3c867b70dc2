#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "dot.h"

namespace fusionkit_emulator {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check(const Attention& call) {
  if (call.causal && call.q_len != call.kv_len) {
    throw std::invalid_argument("causal needs q_len == kv_len, got " + std::to_string(call.q_len) + " and " +
                                std::to_string(call.kv_len));
  }
}

// One query row of one head: where its tensors start, and how many keys it may see.
struct Row {
  int64_t query, keys, key_stride, mask, num_keys, statistic;
};

template <typename Visit>
void for_each_row(const Attention& call, Visit visit) {
  const int64_t group = call.num_heads / call.num_key_value_heads;
  const int64_t key_stride = call.num_key_value_heads * call.head_dim;
  for (int64_t b = 0; b < call.batch_size; ++b) {
    const int64_t mask_batch = call.mask_batches == 1 ? 0 : b;
    for (int64_t h = 0; h < call.num_heads; ++h) {
      const int64_t keys = b * call.kv_len * key_stride + h / group * call.head_dim;
      for (int64_t i = 0; i < call.q_len; ++i) {
        visit(Row{((b * call.q_len + i) * call.num_heads + h) * call.head_dim, keys, key_stride,
                  (mask_batch * call.q_len + i) * call.kv_len, call.causal ? i + 1 : call.kv_len,
                  ((b * call.num_heads + h) * call.q_len + i) * kStatistics});
      }
    }
  }
}

struct Statistics {
  float max, sum;
};

// The softmax of one row into p[0, num_keys).
Statistics probabilities(const Attention& call, const Row& row, const float* q, const float* k, float* p) {
  float max = -kInfinity;
  for (int64_t j = 0; j < row.num_keys; ++j) {
    p[j] = call.scale * dot(q + row.query, k + row.keys + j * row.key_stride, call.head_dim);
    if (call.added != nullptr) p[j] += call.added[row.mask + j];
    if (call.dropped != nullptr && call.dropped[row.mask + j]) p[j] = -kInfinity;
    max = std::max(max, p[j]);
  }
  float sum = 0;
  for (int64_t j = 0; j < row.num_keys; ++j) sum += p[j] = std::exp(p[j] - max);  // -inf - -inf is NaN
  for (int64_t j = 0; j < row.num_keys; ++j) p[j] /= sum;
  return {max, sum};
}

}  // namespace

void attention(const Attention& call, const float* q, const float* k, const float* v, float* out, float* softmax_max,
               float* softmax_sum) {
  check(call);
  std::vector<float> p(call.kv_len);
  for_each_row(call, [&](const Row& row) {
    const Statistics found = probabilities(call, row, q, k, p.data());
    float* to = out + row.query;
    // No key at all is a fully dropped row.
    std::fill_n(to, call.head_dim, row.num_keys == 0 ? std::numeric_limits<float>::quiet_NaN() : 0.0f);
    for (int64_t j = 0; j < row.num_keys; ++j) {
      if (p[j] != 0) add_scaled(p[j], v + row.keys + j * row.key_stride, call.head_dim, to);
    }
    if (softmax_max != nullptr) std::fill_n(softmax_max + row.statistic, kStatistics, found.max);
    if (softmax_sum != nullptr) std::fill_n(softmax_sum + row.statistic, kStatistics, found.sum);
  });
}

void attention_grad(const Attention& call, const float* q, const float* k, const float* v, const float* dout, float* dq,
                    float* dk, float* dv) {
  check(call);
  const int64_t key_size = call.batch_size * call.kv_len * call.num_key_value_heads * call.head_dim;
  std::fill_n(dq, call.batch_size * call.q_len * call.num_heads * call.head_dim, 0.0f);
  std::fill_n(dk, key_size, 0.0f);
  std::fill_n(dv, key_size, 0.0f);
  std::vector<float> p(call.kv_len), dp(call.kv_len);
  for_each_row(call, [&](const Row& row) {
    probabilities(call, row, q, k, p.data());
    float mean = 0;
    for (int64_t j = 0; j < row.num_keys; ++j) {
      dp[j] = dot(dout + row.query, v + row.keys + j * row.key_stride, call.head_dim);
      mean += p[j] * dp[j];
    }
    for (int64_t j = 0; j < row.num_keys; ++j) {
      if (p[j] == 0) continue;
      const int64_t key = row.keys + j * row.key_stride;
      const float dscore = call.scale * p[j] * (dp[j] - mean);
      add_scaled(dscore, k + key, call.head_dim, dq + row.query);
      add_scaled(dscore, q + row.query, call.head_dim, dk + key);
      add_scaled(p[j], dout + row.query, call.head_dim, dv + key);
    }
  });
}

}  // namespace fusionkit_emulator
