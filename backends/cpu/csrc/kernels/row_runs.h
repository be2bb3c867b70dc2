// Rows of x before they become integers: their powers of two, and their runs divided by these.
// Included by kernels/*.cc only; see vec.h.
#pragma once

#include "kernels/lanes.h"
#include "kernels/pairs.h"
#include "kernels/quantized_product.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

constexpr int kLongestRunVectors = kRun / kLanes;
constexpr float kSmallestOfRun = 0x1p-90f;  // so that a run's reciprocal is finite, and of 8 bits or 29 a number

// The largest power of two that is not above a positive number, between 2^-126 and 2^127; 2^-126 of less.
float power_below(float x) {
  const uint32_t exponent = float_to_bits(x) & 0x7f800000;
  return bits_to_float(exponent < 0x00800000 ? 0x00800000 : exponent);
}

template <class T>
float largest_magnitude(const T* x, int64_t n) {
  Vec largest{};
  IntVec unordered{};
  for (int64_t k = 0; k < n; k += kLanes) {
    const Vec value = load_lanes(x + k, 1, n - k);
    unordered |= value != value;
    largest = max(largest, abs(value));
  }
  for (int lane = 0; lane < kLanes; ++lane)
    if (unordered[lane]) return __builtin_nanf("");
  return maximum(largest);
}

// f(row, its address, 1 / its power) of the rows that are finite. row_scales: the powers, NaN of the others.
template <class T, class F>
void visit_finite_rows(const Matrix& x, int64_t begin, int64_t end, float* row_scales, F f) {
  for (int64_t row = begin; row < end; ++row) {
    const T* from = static_cast<const T*>(element(x, row, 0));
    const float largest = largest_magnitude(from, x.cols);
    const bool finite = largest <= __FLT_MAX__;
    const float power = power_below(finite ? largest : 1);
    row_scales[row] = finite ? power : __builtin_nanf("");
    if (finite) f(row, from, 1 / power);
  }
}

// A run of a row, zeros past its end, and the largest magnitude or kSmallestOfRun.
struct RunValues {
  Vec values[kLongestRunVectors];
  int vectors;
  float largest;
};

// Of `n` numbers that are left, or of none.
template <class T>
RunValues load_run(const T* x, int64_t n, int64_t run, float inverse) {
  RunValues loaded;
  loaded.vectors = static_cast<int>(run / kLanes);
  Vec largest = broadcast(kSmallestOfRun);
  for (int v = 0; v < loaded.vectors; ++v) {
    loaded.values[v] = n > v * kLanes ? load_lanes(x + v * kLanes, 1, n - v * kLanes) * inverse : Vec{};
    largest = max(largest, abs(loaded.values[v]));
  }
  loaded.largest = maximum(largest);
  return loaded;
}

// Where a run of a row is in arrays that lie tile by tile.
struct RunPlace {
  int64_t stride;  // rows of the tile
  int64_t at;      // in arrays that have one element for a run
  int64_t word;    // the run's first word of 32 bits in one that has a word for `per_word` k's; the next is a stride on

  template <class Rows>
  RunPlace(const Rows& all, int64_t row, int64_t index, int64_t per_word) {
    const RowsOfTile tile = tile_of(row, all.rows);
    stride = tile.count;
    at = tile.first * all.num_runs + index * stride + row - tile.first;
    word = (tile.first * all.depth + index * all.run * stride) / per_word + row - tile.first;
  }
};

int32_t sum_of(IntVec a) {
  int32_t sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += a[lane];
  return sum;
}

// A run in int8: value = code * scale.
struct RoundedRun {
  IntVec codes[kLongestRunVectors];
  int vectors;
  float scale;

  int32_t sum() const {
    IntVec total{};
    for (int v = 0; v < vectors; ++v) total += codes[v];
    return sum_of(total);
  }
};

// To the nearest code, a tie to the even one, of 127 * x / largest in float32: the promise of `activations="int8"`.
RoundedRun round_run(const RunValues& run) {
  RoundedRun rounded;
  rounded.vectors = run.vectors;
  rounded.scale = run.largest / 127;
  const float inverse = 127 / run.largest;
  for (int v = 0; v < run.vectors; ++v) rounded.codes[v] = round_to_int(run.values[v] * inverse);
  return rounded;
}

}  // namespace
}  // namespace fusionkit_cpu::FUSIONKIT_ISA
