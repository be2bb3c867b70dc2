#include "rope.h"

#include <stdexcept>
#include <string>

namespace fusionkit_emulator {
namespace {

// Calls visit(row of x and y, token of the batch) for every head of every token.
template <typename Visit>
void for_each_head(const RopeShape& shape, Visit visit) {
  int64_t row = 0;
  for (int64_t token = 0; token < shape.batch_size * shape.seq_len; ++token) {
    for (int64_t head = 0; head < shape.num_heads; ++head, row += shape.head_dim) visit(row, token);
  }
}

}  // namespace

void rope_halves(const float* x, const float* cos, const float* sin, const RopeShape& shape, float* y) {
  const int64_t half = shape.head_dim / 2;
  for_each_head(shape, [&](int64_t row, int64_t token) {
    const float *c = cos + token % shape.seq_len * shape.head_dim, *s = sin + token % shape.seq_len * shape.head_dim;
    const float* from = x + row;
    float* to = y + row;
    for (int64_t i = 0; i < half; ++i) {
      to[i] = from[i] * c[i] - from[i + half] * s[i];
      to[i + half] = from[i + half] * c[i + half] + from[i] * s[i + half];
    }
  });
}

void rope_halves_grad(const float* dy, const float* cos, const float* sin, const RopeShape& shape, float* dx) {
  const int64_t half = shape.head_dim / 2;
  for_each_head(shape, [&](int64_t row, int64_t token) {
    const float *c = cos + token % shape.seq_len * shape.head_dim, *s = sin + token % shape.seq_len * shape.head_dim;
    const float* from = dy + row;
    float* to = dx + row;
    for (int64_t i = 0; i < half; ++i) {
      to[i] = from[i] * c[i] + from[i + half] * s[i + half];
      to[i + half] = from[i + half] * c[i + half] - from[i] * s[i];
    }
  });
}

void rope_from_table(const float* x, const float* table, int64_t max_position, const int64_t* positions, bool is_neox,
                     const RopeShape& shape, float* y) {
  const int64_t half = shape.head_dim / 2;
  const int64_t step = is_neox ? 1 : 2, partner = is_neox ? half : 1;
  for_each_head(shape, [&](int64_t row, int64_t token) {
    const int64_t position = positions[token];
    if (position < 0 || position >= max_position) {
      throw std::out_of_range("position " + std::to_string(position) + " has no row in a table of " +
                              std::to_string(max_position));
    }
    const float *c = table + position * shape.head_dim, *s = c + half;
    for (int64_t i = 0; i < half; ++i) {
      const int64_t first = row + i * step, second = first + partner;
      const float x1 = x[first], x2 = x[second];
      y[first] = x1 * c[i] - x2 * s[i];
      y[second] = x2 * c[i] + x1 * s[i];
    }
  });
}

}  // namespace fusionkit_emulator
