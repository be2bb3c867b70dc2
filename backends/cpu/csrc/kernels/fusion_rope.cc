#include "fusion_rope.h"

#include <type_traits>

#include "kernels/row_access.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kElementsPerShare = 16384;

// One head: pair i is turned by the angle whose cosine and sine are cos[i] and sign * sin[i].
struct Rotation {
  const float* cos;
  const float* sin;
  float sign;
  int64_t half;
};

// Pairs (x[i], x[i + half]).
template <class T, class Way>
void rotate_halves(Way way, const Rotation& r, const T* x, T* y) {
  for_each_vec(way, r.half, [&](int64_t i, auto lanes) {
    const Vec c = lanes.load(r.cos + i), s = lanes.load(r.sin + i) * broadcast(r.sign);
    const Vec a = lanes.fetch(x + i), b = lanes.fetch(x + r.half + i);
    lanes.store(y + i, a * c - b * s);
    lanes.store(y + r.half + i, b * c + a * s);
  });
}

// Pairs (x[2 i], x[2 i + 1]): two vectors are parted into even and odd elements and joined again.
template <class T, class Way>
void rotate_pairs(Way way, const Rotation& r, const T* x, T* y) {
  IntVec even, odd, low, high;  // constants after unrolling
  for (int i = 0; i < kLanes; ++i) {
    even[i] = 2 * i;
    odd[i] = 2 * i + 1;
    low[i] = i / 2 + i % 2 * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
  int64_t i = 0;
  for (; i + kLanes <= r.half; i += kLanes) {
    const Vec c = load(r.cos + i), s = load(r.sin + i) * broadcast(r.sign);
    const Vec x0 = way.fetch(x + 2 * i), x1 = way.fetch(x + 2 * i + kLanes);
    const Vec a = __builtin_shuffle(x0, x1, even), b = __builtin_shuffle(x0, x1, odd);
    const Vec turned_a = a * c - b * s, turned_b = b * c + a * s;
    way.store(y + 2 * i, __builtin_shuffle(turned_a, turned_b, low));
    way.store(y + 2 * i + kLanes, __builtin_shuffle(turned_a, turned_b, high));
  }
  for (; i < r.half; ++i) {
    const float c = r.cos[i], s = r.sin[i] * r.sign, a = to_float(x[2 * i]), b = to_float(x[2 * i + 1]);
    y[2 * i] = from_float<T>(a * c - b * s);
    y[2 * i + 1] = from_float<T>(b * c + a * s);
  }
}

// The heads of one token as rows.
template <class T>
Rows heads_of(const Tensor& x, int64_t batch, int64_t position) {
  Rows rows{};
  rows.data = static_cast<T*>(x.data) + batch * x.strides[0] + position * x.strides[1];
  rows.count = rows.shape[0] = x.shape[2];
  rows.strides[0] = x.strides[2];
  rows.num_axes = 1;
  rows.size = x.shape[3];
  rows.stride = x.strides[3];
  return rows;
}

template <class T>
void rotate_tokens(const Tensor& x, const Tensor& cos, const Tensor& sin, const int64_t* positions, bool interleaved,
                   bool inverse, const Tensor& y) {
  const int64_t seq_len = x.shape[1], num_heads = x.shape[2], head_dim = x.shape[3];
  const Rows cos_rows = rows_of(cos), sin_rows = rows_of(sin);
  const int64_t num_tokens = x.shape[0] * seq_len, grain = kElementsPerShare / (num_heads * head_dim + 1) + 1;
  // Each half of a head begins at a vector.
  const bool on_lines = begins_lines(y) && head_dim / 2 % kLanes == 0;
  visit_way(2 * num_tokens * num_heads * head_dim * sizeof(T), on_lines, [&](auto way) {
    parallel_for(num_tokens, grain, [&](int64_t begin, int64_t end, int) {
      const RowReader<float> read_cos(cos_rows), read_sin(sin_rows);
      for (int64_t token = begin; token < end; ++token) {
        const Rotation r{read_cos(positions[token]), read_sin(positions[token]), inverse ? -1.0f : 1.0f, head_dim / 2};
        const Rows heads = heads_of<T>(x, token / seq_len, token % seq_len);
        const RowReader<T> read_head(heads);
        T* target = static_cast<T*>(y.data) + token * num_heads * head_dim;
        for (int64_t head = 0; head < num_heads; ++head, target += head_dim)
          interleaved ? rotate_pairs(way, r, read_head(head), target) : rotate_halves(way, r, read_head(head), target);
      }
      way.finish();
    });
  });
}

}  // namespace

void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const int64_t* positions, bool interleaved,
          bool inverse, const Tensor& y) {
  visit_floating(x.dtype, [&](auto* type) {
    rotate_tokens<std::remove_pointer_t<decltype(type)>>(x, cos, sin, positions, interleaved, inverse, y);
  });
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
