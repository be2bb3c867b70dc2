// x's rows as integers, each run of them with a power of two, and whether a run needs its second digit.
#include "kernels/lanes.h"
#include "kernels/pairs.h"
#include "kernels/quantized_product.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

constexpr int kBits = 29;       // of a run's largest number below its leading bit
constexpr int kDigitBits = 15;  // of digit 1
constexpr int kLongestRunVectors = kRun / kLanes;

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

// Of squares: what digit 1 may hold of a run and still be left out. 2^-16 of the norm for numbers of 8 bits.
constexpr float largest_loss(const BFloat16*) { return 0x1p-32f; }
template <class T>
constexpr float largest_loss(const T*) {
  return 0;
}

Vec square(IntVec a) {
  const Vec value = __builtin_convertvector(a, Vec);
  return value * value;
}

// One digit of a vector, in the order in which a word's pairs are multiplied.
void store_digits(IntVec digits, int16_t* to) {
  typedef int16_t Narrow __attribute__((vector_size(2 * kLanes)));
  IntVec order{};
  for (int lane = 0; lane < kLanes; ++lane) order[lane] = (lane & ~3) | (lane & 1) << 1 | (lane & 2) >> 1;
  const Narrow narrow = __builtin_convertvector(__builtin_shuffle(digits, order), Narrow);
  __builtin_memcpy(to, &narrow, sizeof narrow);
}

int32_t sum_of(IntVec a) {
  int32_t sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += a[lane];
  return sum;
}

// The digits of a run of so many vectors, [digit][vector].
struct RunDigits {
  IntVec digits[2][kLongestRunVectors];
  int vectors;

  bool needs_low(float largest_loss) const {
    Vec low{}, all{};
    for (int v = 0; v < vectors; ++v) {
      low += square(digits[1][v]);
      all += square((digits[0][v] << kDigitBits) + digits[1][v]);
    }
    return sum(low) > largest_loss * sum(all);
  }

  // Returns the sum.
  int32_t store(int digit, int16_t* to) const {
    IntVec total{};
    for (int v = 0; v < vectors; ++v) {
      store_digits(digits[digit][v], to + v * kLanes);
      total += digits[digit][v];
    }
    return sum_of(total);
  }
};

template <class T>
void make_run(const T* x, int64_t n, float inverse, int64_t row, int64_t index, const Digits& digits) {
  Vec values[kLongestRunVectors];
  Vec largest{};
  const int vectors = static_cast<int>(digits.run / kLanes);
  for (int v = 0; v < vectors; ++v) {
    values[v] = n > v * kLanes ? load_lanes(x + v * kLanes, 1, n - v * kLanes) * inverse : Vec{};
    largest = max(largest, abs(values[v]));
  }
  const float power = power_below(maximum(max(largest, broadcast(0x1p-90f))));
  const float unit = power / static_cast<float>(1 << kBits);
  RunDigits made{{}, vectors};
  for (int v = 0; v < vectors; ++v) {
    const IntVec q = round_to_int(values[v] * (1 / unit));
    const IntVec high = (q + (1 << (kDigitBits - 1))) >> kDigitBits;
    made.digits[0][v] = high > INT16_MAX ? IntVec{} + INT16_MAX : high;  // digit 1 has room for what is left
    made.digits[1][v] = q - (made.digits[0][v] << kDigitBits);
  }
  const bool low = made.needs_low(largest_loss(x));
  if (!low)
    for (IntVec& digit : made.digits[1]) digit = IntVec{};
  const int64_t at = row * digits.num_runs + index, low_at = digits.rows * digits.num_runs + at;
  int16_t* to = digits.digits + row * digits.depth + index * digits.run;
  digits.has_low[at] = low;
  digits.run_scales[at] = unit;
  digits.digit_sums[at] = made.store(0, to);
  digits.digit_sums[low_at] = made.store(1, to + digits.rows * digits.depth);
  const int64_t q = int64_t{digits.digit_sums[at]} * (1 << kDigitBits) + digits.digit_sums[low_at];
  digits.run_sums[at] = static_cast<float>(q) * unit;
}

}  // namespace

void make_digits(const Matrix& x, int64_t begin, int64_t end, const Digits& digits) {
  visit_floating(x.dtype, [&](auto* type) {
    for (int64_t row = begin; row < end; ++row) {
      const auto* from = static_cast<decltype(type)>(element(x, row, 0));
      const float largest = largest_magnitude(from, x.cols);
      const bool finite = largest <= __FLT_MAX__;
      const float power = power_below(finite ? largest : 1);
      digits.row_scales[row] = finite ? power : __builtin_nanf("");
      for (int64_t index = 0; finite && index < digits.num_runs; ++index)
        make_run(from + index * digits.run, x.cols - index * digits.run, 1 / power, row, index, digits);
    }
  });
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
