// x's rows as integers, each run of them with a power of two, and whether a run needs its second digit.
#include <type_traits>

#include "kernels/row_runs.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

constexpr int kBits = 29;       // of a run's largest number below its leading bit
constexpr int kDigitBits = 15;  // of digit 1

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

// One digit of a vector, in the order in which a word's pairs are multiplied: pairs of 32 bits, `stride` apart.
void store_digits(IntVec digits, int64_t stride, int32_t* to) {
  typedef int16_t Narrow __attribute__((vector_size(2 * kLanes)));
  IntVec order{};
  for (int lane = 0; lane < kLanes; ++lane) order[lane] = (lane & ~3) | (lane & 1) << 1 | (lane & 2) >> 1;
  const Narrow narrow = __builtin_convertvector(__builtin_shuffle(digits, order), Narrow);
  int32_t pairs[kLanes / 2];
  __builtin_memcpy(pairs, &narrow, sizeof narrow);
  for (int i = 0; i < kLanes / 2; ++i) to[i * stride] = pairs[i];
}

// The digits of a run of so many vectors, [digit][vector].
struct RunDigits {
  IntVec digits[2][kLongestRunVectors];
  int vectors;
  bool has_low;

  bool needs_low(float largest_loss) const {
    Vec low{}, all{};
    for (int v = 0; v < vectors; ++v) {
      low += square(digits[1][v]);
      all += square((digits[0][v] << kDigitBits) + digits[1][v]);
    }
    return sum(low) > largest_loss * sum(all);
  }
};

// Of one digit, whose sum is returned.
int32_t store_digit(const IntVec* digit, int vectors, const RunPlace& to, int32_t* pairs) {
  IntVec total{};
  for (int v = 0; v < vectors; ++v) {
    store_digits(digit[v], to.stride, pairs + to.word + v * (kLanes / 2) * to.stride);
    total += digit[v];
  }
  return sum_of(total);
}

void store_rounded(const RunValues& run, const RunPlace& to, const Digits& digits) {
  const RoundedRun rounded = round_run(run);
  const int32_t sum = store_digit(rounded.codes, run.vectors, to, reinterpret_cast<int32_t*>(digits.digits));
  digits.has_low[to.at] = 0;
  digits.digit_scales[to.at] = rounded.scale;
  digits.digit_sums[to.at] = sum;
  digits.run_sums[to.at] = static_cast<float>(sum) * rounded.scale;
}

RunDigits digits_of(const RunValues& run, float unit, float largest_loss) {
  RunDigits made{{}, run.vectors, true};
  for (int v = 0; v < run.vectors; ++v) {
    const IntVec q = round_to_int(run.values[v] * (1 / unit));
    const IntVec high = (q + (1 << (kDigitBits - 1))) >> kDigitBits;
    made.digits[0][v] = high > INT16_MAX ? IntVec{} + INT16_MAX : high;  // digit 1 has room for what is left
    made.digits[1][v] = q - (made.digits[0][v] << kDigitBits);
  }
  made.has_low = made.needs_low(largest_loss);
  if (!made.has_low)
    for (IntVec& digit : made.digits[1]) digit = IntVec{};
  return made;
}

void store_exact(const RunValues& run, float largest_loss, const RunPlace& to, const Digits& digits) {
  const float unit = power_below(run.largest) / static_cast<float>(1 << kBits);
  const RunDigits made = digits_of(run, unit, largest_loss);
  const int64_t low_at = digits.rows * digits.num_runs + to.at;
  auto* pairs = reinterpret_cast<int32_t*>(digits.digits);
  const int64_t high = store_digit(made.digits[0], run.vectors, to, pairs);
  const int64_t low = store_digit(made.digits[1], run.vectors, to, pairs + digits.rows * digits.depth / 2);
  digits.has_low[to.at] = made.has_low;
  digits.digit_scales[to.at] = unit * (1 << kDigitBits);
  digits.digit_scales[low_at] = unit;
  digits.digit_sums[to.at] = static_cast<int32_t>(high);
  digits.digit_sums[low_at] = static_cast<int32_t>(low);
  digits.run_sums[to.at] = static_cast<float>(high * (1 << kDigitBits) + low) * unit;
}

}  // namespace

void make_digits(const Matrix& x, int64_t begin, int64_t end, const Digits& digits) {
  visit_floating(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    visit_finite_rows<T>(x, begin, end, digits.row_scales, [&](int64_t row, const T* from, float inverse) {
      for (int64_t index = 0; index < digits.num_runs; ++index) {
        const int64_t k = index * digits.run;
        const RunValues run = load_run(from + k, x.cols - k, digits.run, inverse);
        const RunPlace to(digits, row, index, 2);
        digits.rounds_x ? store_rounded(run, to, digits) : store_exact(run, largest_loss(type), to, digits);
      }
    });
  });
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
