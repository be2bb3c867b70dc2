// The product of integers: runs of x's digits with the codes of a panel, exact in 32 bits, and then scaled in float32.
#include "kernels/quantized_product.h"

#include "kernels/quantized_form.h"
#include "kernels/quantized_run.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

// The sums of so many rows take 4 or 8 registers of 16, or up to 16 of 32 with AVX-512. With AVX2 one row takes 8 bits
// of all columns at once, in the order of memory; in 4 bits x needs those registers.
template <class Form, int kRows>
constexpr int kVectorsOf = kLanes == 16 ? (kRows > 4 ? 16 / kRows : 4)
                           : kRows == 1 ? (Form::kBits == 8 ? 8 : 4)
                           : kRows == 8 ? 1
                                        : 2;

template <class Form, int kRows>
using TileSums = IntVec[kRows][kVectorsOf<Form, kRows>];

// What a tile has of one digit of a run.
template <int kRows>
struct TileDigit {
  const int16_t* digits;
  const int32_t* sums;
  const float *scales, *run_sums;

  TileDigit(const Digits& x, int64_t first_row, int64_t index, int digit)
      : digits(x.digits + (digit * x.rows + first_row) * x.depth + index * x.run * kRows) {
    const int64_t at = first_row * x.num_runs + index * kRows, of_digit = digit * x.rows * x.num_runs + at;
    sums = x.digit_sums + of_digit;
    scales = x.digit_scales + of_digit;
    run_sums = x.run_sums + at;
  }
};

inline PairVec broadcast_pair(const int16_t* pair) {
  int32_t both;
  __builtin_memcpy(&both, pair, sizeof both);
  return (PairVec)(IntVec{} + both);
}

// sums += the rows' digits of one word's k's times its codes. x: the tile's, from the word's first k on. With
// codes of 8 bits one row's digits stay in registers while the columns pass, otherwise the codes do. Digit 0 fetches
// what comes later.
template <class Form, int kDigit, int kRows>
[[gnu::always_inline]] inline void add_word(const int16_t* x, const uint32_t* words, TileSums<Form, kRows>& sums) {
  constexpr int kVectors = kVectorsOf<Form, kRows>, kPairs = Form::kPerWord / 2;
  if constexpr (kRows == 1 && Form::kBits == 8) {
    PairVec at[kPairs];
#pragma GCC unroll 4
    for (int pair = 0; pair < kPairs; ++pair) at[pair] = broadcast_pair(x + pair * 2);
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) {
      if (kDigit == 0) fetch_ahead<Form>(words, n);
      const auto word = Form::load_word(words + n * kLanes);
#pragma GCC unroll 4
      for (int pair = 0; pair < kPairs; ++pair)
        sums[0][n] = in_order(add_pair_products(sums[0][n], at[pair], Form::codes(word, pair)));
    }
    return;
  }
  typename Form::Word word[kVectors];
#pragma GCC unroll 4
  for (int n = 0; n < kVectors; ++n) {
    if (kDigit == 0) fetch_ahead<Form>(words, n);
    word[n] = Form::load_word(words + n * kLanes);
  }
#pragma GCC unroll 4
  for (int pair = 0; pair < kPairs; ++pair) {
    PairVec codes[kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) codes[n] = Form::codes(word[n], pair);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const PairVec at = broadcast_pair(x + (pair * kRows + row) * 2);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sums[row][n] = in_order(add_pair_products(sums[row][n], at, codes[n]));
    }
  }
}

// Of a whole run as many words as the compiler knows.
template <class Form, int kDigit, int kRows>
[[gnu::always_inline]] inline void add_words(const int16_t* x, const uint32_t* words, int64_t num_words,
                                             TileSums<Form, kRows>& sums) {
  constexpr int kWhole = kRun / Form::kPerWord;
  if (kRows == 1 && num_words == kWhole) {
#pragma GCC unroll 8
    for (int i = 0; i < kWhole; ++i)
      add_word<Form, kDigit, kRows>(x + i * Form::kPerWord * kRows, words + i * kQuantizedCols, sums);
    return;
  }
#pragma GCC unroll 1
  for (int64_t i = 0; i < num_words; ++i)
    add_word<Form, kDigit, kRows>(x + i * Form::kPerWord * kRows, words + i * kQuantizedCols, sums);
}

// totals[row] += one digit of x times W for a run, and a strip of columns from `col` on. The minimums are added beside
// digit 0, for both.
template <class Form, int kDigit, int kRows>
[[gnu::always_inline]] inline void multiply_digit(const TileDigit<kRows>& x, const QuantizedFormat& format,
                                                  const Run& run, int64_t col, float* totals) {
  constexpr int kVectors = kVectorsOf<Form, kRows>;
  constexpr bool kAddsMinimums = kDigit == 0 && Form::kHasMinimums;
  TileSums<Form, kRows> sums;
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n)
      sums[row][n] = Form::kExcess == 0 ? IntVec{} : IntVec{} - Form::kExcess * x.sums[row];
  add_words<Form, kDigit, kRows>(x.digits, run.words(Form::kPerWord) + col, run.num_words(Form::kPerWord), sums);
#pragma GCC unroll 8
  for (int n = 0; n < kVectors; ++n) {
    const Vec scale = load_scale<Form>(format, run.group(), run.block(), col + n * kLanes, 0);
    const Vec minimum = kAddsMinimums ? load_scale<Form>(format, run.group(), run.block(), col + n * kLanes, 1) : Vec{};
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      float* total = totals + row * kQuantizedCols + n * kLanes;
      const Vec product = __builtin_convertvector(sums[row][n], Vec) * x.scales[row];
      Vec sum = fma(product, scale, load(total));
      if (kAddsMinimums) sum = fma(broadcast(x.run_sums[row]), minimum, sum);
      store(total, sum);
    }
  }
}

// Runs [begin, end) of a tile. A row without digit 1 in a tile that has one adds exact zeros.
template <class Form, int kRows>
void multiply_tile(const Digits& x, int64_t first_row, const QuantizedFormat format, Run run, int64_t begin,
                   int64_t end, float* totals) {
  for (int64_t index = begin; index < end; ++index, run.step()) {
    run.template fetch_ahead<Form>();
    const uint8_t* of_rows = x.has_low + first_row * x.num_runs + index * kRows;
    bool has_low = false;
    for (int row = 0; row < kRows && !x.rounds_x; ++row) has_low |= of_rows[row] != 0;
    const TileDigit<kRows> high(x, first_row, index, 0), low(x, first_row, index, 1);
#pragma GCC unroll 1
    for (int64_t col = 0; col < kQuantizedCols; col += kVectorsOf<Form, kRows> * kLanes) {
      multiply_digit<Form, 0, kRows>(high, format, run, col, totals + col);
      if (has_low) multiply_digit<Form, 1, kRows>(low, format, run, col, totals + col);
    }
  }
}

// totals += x W, block by block of runs.
template <class Form>
void multiply_panel(const Digits& x, const QuantizedFormat& format, const char* panel, float* totals) {
  const int64_t num_runs = (format.depth + x.run - 1) / x.run, block = kBlockDepth / x.run;
  for (int64_t begin = 0; begin < num_runs; begin += block) {
    const int64_t end = begin + block < num_runs ? begin + block : num_runs;
    const Run run(format, x.run, panel, begin * x.run);
    visit_tiles(x.rows, [&](auto count, int64_t row) {
      multiply_tile<Form, decltype(count)::value>(x, row, format, run, begin, end, totals + row * kQuantizedCols);
    });
  }
}

}  // namespace

void multiply_quantized(const Digits& x, const QuantizedFormat& format, const void* panel, const Matrix& c,
                        const float* bias, float* totals) {
  clear_rows(totals, x.rows);
  visit_form(format,
             [&](auto form) { multiply_panel<decltype(form)>(x, format, static_cast<const char*>(panel), totals); });
  write_rows(totals, x.rows, x.row_scales, bias, c);
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
