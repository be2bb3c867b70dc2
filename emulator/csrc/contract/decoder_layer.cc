#include "decoder_layer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "dot.h"
#include "rms_norm.h"

namespace fusionkit_emulator {
namespace {

std::vector<float> normalised(const std::vector<float>& x, const std::vector<float>& gamma, float epsilon) {
  std::vector<float> y(x.size());
  const auto hidden = static_cast<int64_t>(gamma.size());
  rms_norm(x.data(), gamma.data(), static_cast<int64_t>(x.size()) / hidden, hidden, epsilon, y.data(), nullptr);
  return y;
}

void add(const std::vector<float>& x, std::vector<float>& to) {
  for (size_t i = 0; i < x.size(); ++i) to[i] += x[i];
}

void rotate(float* head, const float* cos, const float* sin, int64_t head_dim, bool halves) {
  const int64_t distance = halves ? head_dim / 2 : 1, stride = halves ? 1 : 2;
  for (int64_t pair = 0; pair < head_dim / 2; ++pair) {
    const int64_t i = pair * stride, j = i + distance;
    const float a = head[i], b = head[j];
    head[i] = a * cos[i] - b * sin[i];
    head[j] = b * cos[j] + a * sin[j];
  }
}

// One query head over the keys up to its own position.
void attend(const DecoderLayer& layer, const PagedCache& cache, const float* q, int64_t row, int64_t position,
            int64_t head, const float* keys, const float* values, float* out) {
  const float scale = 1 / std::sqrt(static_cast<float>(layer.head_dim));
  std::vector<float> p(position + 1);
  float max = -std::numeric_limits<float>::infinity(), sum = 0;
  for (int64_t j = 0; j <= position; ++j) {
    p[j] = scale * dot(q, keys + cache.offset(row, j, head), layer.head_dim);
    max = std::max(max, p[j]);
  }
  for (float& each : p) sum += each = std::exp(each - max);
  std::fill_n(out, layer.head_dim, 0.0f);
  for (int64_t j = 0; j <= position; ++j)
    add_scaled(p[j] / sum, values + cache.offset(row, j, head), layer.head_dim, out);
}

}  // namespace

int64_t PagedCache::offset(int64_t row, int64_t position, int64_t head) const {
  const int64_t entry = position / block_size;
  const int64_t block = entry < blocks_per_row ? block_tables[row * blocks_per_row + entry] : -1;
  if (block < 0) throw std::out_of_range("block_tables has no block for position " + std::to_string(position));
  return ((block * num_key_value_heads + head) * block_size + position % block_size) * head_dim;
}

std::vector<float> product(const std::vector<float>& x, const std::vector<float>& weight, int64_t in, int64_t out) {
  const int64_t rows = static_cast<int64_t>(x.size()) / in;
  std::vector<float> y(rows * out);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < out; ++i) y[row * out + i] = dot(x.data() + row * in, weight.data() + i * in, in);
  return y;
}

std::vector<float> projected(const DecoderLayer& layer, const std::vector<float>& x, const std::vector<float>& cos,
                             const std::vector<float>& sin) {
  const int64_t heads = layer.num_heads + 2 * layer.num_key_value_heads, width = heads * layer.head_dim;
  std::vector<float> qkv = product(normalised(x, layer.norm, layer.epsilon), layer.qkv, layer.hidden_size, width);
  const int64_t tokens = static_cast<int64_t>(qkv.size()) / width;
  for (int64_t token = 0; token < tokens; ++token) {
    float* row = qkv.data() + token * width;
    for (size_t i = 0; i < layer.qkv_bias.size(); ++i) row[i] += layer.qkv_bias[i];
    for (int64_t head = 0; head < layer.num_heads + layer.num_key_value_heads; ++head)
      rotate(row + head * layer.head_dim, cos.data() + token * layer.head_dim, sin.data() + token * layer.head_dim,
             layer.head_dim, layer.halves);
  }
  return qkv;
}

std::vector<float> decoder_layer(const DecoderLayer& layer, const std::vector<float>& x,
                                 const std::vector<float>& projected, const std::vector<StepRow>& rows,
                                 const PagedCache& cache, const float* keys, const float* values) {
  const int64_t inner = layer.num_heads * layer.head_dim, group = layer.num_heads / layer.num_key_value_heads;
  const int64_t width = inner + 2 * layer.num_key_value_heads * layer.head_dim;
  std::vector<float> attended(x.size() / layer.hidden_size * inner);
  for (size_t row = 0; row < rows.size(); ++row)
    for (int64_t i = 0; i < rows[row].num_tokens; ++i)
      for (int64_t head = 0; head < layer.num_heads; ++head) {
        const int64_t token = rows[row].first_token + i, at = head * layer.head_dim;
        attend(layer, cache, projected.data() + token * width + at, static_cast<int64_t>(row),
               rows[row].first_position + i, head / group, keys, values, attended.data() + token * inner + at);
      }
  std::vector<float> y = x;
  add(product(attended, layer.out_linear, inner, layer.hidden_size), y);
  const std::vector<float> gate_up =
      product(normalised(y, layer.ffn_norm, layer.epsilon), layer.ffn1, layer.hidden_size, 2 * layer.intermediate_size);
  std::vector<float> activated(gate_up.size() / 2);
  for (size_t i = 0; i < activated.size(); ++i) {
    const size_t token = i / layer.intermediate_size, column = i % layer.intermediate_size;
    const float* row = gate_up.data() + token * 2 * layer.intermediate_size;
    activated[i] = row[column] / (1 + std::exp(-row[column])) * row[column + layer.intermediate_size];
  }
  add(product(activated, layer.ffn2, layer.intermediate_size, layer.hidden_size), y);
  return y;
}

}  // namespace fusionkit_emulator
