// The product of integers: runs of x's digits with the codes of a panel, exact in 32 bits, and then scaled in float32.
#include "kernels/quantized_product.h"

#include "kernels/quantized_form.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

constexpr int kSumRows = 4;
// Codes of so many k's stay in the first-level caches while the rows pass: 32 KB of 8 bits.
constexpr int64_t kBlockDepth = 512;
constexpr int64_t kAhead = 4096;  // bytes of a panel, asked for before they are needed

// Where a run of codes lies in its panel. Steps through all of them: divisions would take longer than a row's run.
class Run {
 public:
  Run(const QuantizedFormat& format, int64_t size, const char* panel, int64_t k)
      : format_(format),
        size_(size),
        group_bytes_(group_bytes(format, format.group_size)),
        panel_(panel),
        group_(panel + groups_at(format) + k / format.group_size * group_bytes_),
        begin_(k / format.group_size * format.group_size),
        k_(k) {}

  const char* group() const { return group_; }
  // Of scales in two levels.
  const char* block() const { return panel_ + k_ / kScaleBlock * block_bytes(format_); }
  int64_t k() const { return k_; }
  const uint32_t* words(int per_word) const {
    return reinterpret_cast<const uint32_t*>(group_ + scale_bytes(format_)) + (k_ - begin_) / per_word * kQuantizedCols;
  }
  int64_t num_words(int per_word) const {
    const int64_t left = format_.depth - k_;
    return ((left < size_ ? left : size_) + per_word - 1) / per_word;
  }
  void step() {
    k_ += size_;
    if (k_ - begin_ < format_.group_size) return;
    begin_ = k_;
    group_ += group_bytes_;
  }

 private:
  const QuantizedFormat format_;
  const int64_t size_, group_bytes_;
  const char* const panel_;
  const char* group_;
  int64_t begin_, k_;
};

// One digit of the rows of a tile, from one of x's on. Its sums take kRows * kVectors registers: 4 or 8 of 16, or as
// many again of 32 with AVX-512.
template <int kRows_>
struct RowTile {
  static constexpr int kRows = kRows_;
  static constexpr int kVectors = kLanes == 16 || kRows == 1 ? 4 : 2;

  RowTile(const Digits& x, int64_t row, int digit)
      : digits_(x.digits + (digit * x.rows + row) * x.depth),
        digit_sums_(x.digit_sums + (digit * x.rows + row) * x.num_runs),
        run_scales_(x.run_scales + row * x.num_runs),
        run_sums_(x.run_sums + row * x.num_runs),
        has_low_(x.has_low + row * x.num_runs),
        depth_(x.depth),
        num_runs_(x.num_runs),
        unit_(digit == 0 ? 32768 : 1) {}

  const int16_t* digits(int row, int64_t k) const { return digits_ + row * depth_ + k; }
  int32_t digit_sum(int row, int64_t index) const { return digit_sums_[row * num_runs_ + index]; }
  float scale(int row, int64_t index) const { return run_scales_[row * num_runs_ + index] * unit_; }
  float run_sum(int row, int64_t index) const { return run_sums_[row * num_runs_ + index]; }
  bool has_low(int row, int64_t index) const { return has_low_[row * num_runs_ + index]; }

 private:
  const int16_t* digits_;
  const int32_t* digit_sums_;
  const float *run_scales_, *run_sums_;
  const uint8_t* has_low_;
  const int64_t depth_, num_runs_;
  const float unit_;
};

inline PairVec broadcast_pair(const int16_t* pair) {
  int32_t both;
  __builtin_memcpy(&both, pair, sizeof both);
  return (PairVec)(IntVec{} + both);
}

// sums[m] += x's digits of one word's k's times its codes, for a strip of columns.
template <class Form, class Tile>
[[gnu::always_inline]] inline void add_word(const Tile& tile, int64_t k, const uint32_t* words,
                                            IntVec (&sums)[Tile::kRows][Tile::kVectors]) {
  typename Form::Word word[Tile::kVectors];
#pragma GCC unroll 4
  for (int n = 0; n < Tile::kVectors; ++n) word[n] = Form::load_word(words + n * kLanes);
#pragma GCC unroll 4
  for (int pair = 0; pair < Form::kPerWord / 2; ++pair) {
    PairVec codes[Tile::kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < Tile::kVectors; ++n) codes[n] = Form::codes(word[n], pair);
#pragma GCC unroll 8
    for (int row = 0; row < Tile::kRows; ++row) {
      const PairVec x = broadcast_pair(tile.digits(row, k + 2 * pair));
#pragma GCC unroll 4
      for (int n = 0; n < Tile::kVectors; ++n) sums[row][n] = add_pair_products(sums[row][n], x, codes[n]);
    }
  }
}

// Of a whole run as many words as the compiler knows.
template <class Form, class Tile>
[[gnu::always_inline]] inline void add_words(const Tile& tile, int64_t k, const uint32_t* words, int64_t num_words,
                                             IntVec (&sums)[Tile::kRows][Tile::kVectors]) {
  constexpr int kWhole = kRun / Form::kPerWord;
  if (Tile::kRows == 1 && num_words == kWhole) {
#pragma GCC unroll 8
    for (int i = 0; i < kWhole; ++i) add_word<Form>(tile, k + i * Form::kPerWord, words + i * kQuantizedCols, sums);
    return;
  }
  for (int64_t i = 0; i < num_words; ++i)
    add_word<Form>(tile, k + i * Form::kPerWord, words + i * kQuantizedCols, sums);
}

// totals[row] += one digit of x times W for run `index`, and a strip of columns from `col` on. The minimums are added
// beside digit 0, for both.
template <class Form, bool kAddsMinimums, class Tile>
[[gnu::always_inline]] inline void multiply_digit(const Tile& tile, const QuantizedFormat& format, const Run& run,
                                                  int64_t index, int64_t col, float* totals) {
  IntVec sums[Tile::kRows][Tile::kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < Tile::kRows; ++row)
#pragma GCC unroll 4
    for (int n = 0; n < Tile::kVectors; ++n)
      sums[row][n] = Form::kExcess == 0 ? IntVec{} : IntVec{} - Form::kExcess * tile.digit_sum(row, index);
  add_words<Form>(tile, run.k(), run.words(Form::kPerWord) + col, run.num_words(Form::kPerWord), sums);
#pragma GCC unroll 4
  for (int n = 0; n < Tile::kVectors; ++n) {
    const Vec scale = load_scale<Form>(format, run.group(), run.block(), col + n * kLanes, 0);
    const Vec minimum = kAddsMinimums ? load_scale<Form>(format, run.group(), run.block(), col + n * kLanes, 1) : Vec{};
#pragma GCC unroll 4
    for (int row = 0; row < Tile::kRows; ++row) {
      float* total = totals + row * kQuantizedCols + n * kLanes;
      const Vec product = __builtin_convertvector(sums[row][n], Vec) * tile.scale(row, index);
      Vec sum = fma(product, scale, load(total));
      if (kAddsMinimums) sum = fma(broadcast(tile.run_sum(row, index)), minimum, sum);
      store(total, sum);
    }
  }
}

inline void prefetch(const void* from, int64_t num_bytes) {
  for (int64_t at = 0; at < num_bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at);
}

// Runs [begin, end) of kRows rows. A row without digit 1 in a tile that has one adds exact zeros.
template <class Form, int kRows>
void multiply_runs(const Digits& x, int64_t first_row, const QuantizedFormat format, Run run, int64_t begin,
                   int64_t end, float* totals) {
  using Tile = RowTile<kRows>;
  constexpr int kStripCols = Tile::kVectors * kLanes;
  static_assert(kQuantizedCols % kStripCols == 0);
  const Tile high(x, first_row, 0), low(x, first_row, 1);
  for (int64_t index = begin; index < end; ++index, run.step()) {
    if (kRows == 1) {
      const auto* words = reinterpret_cast<const char*>(run.words(Form::kPerWord));
      prefetch(words + kAhead, run.num_words(Form::kPerWord) * kQuantizedCols * 4);
    }
    bool has_low = false;
    for (int row = 0; row < kRows; ++row) has_low |= high.has_low(row, index);
#pragma GCC unroll 1
    for (int64_t col = 0; col < kQuantizedCols; col += kStripCols) {
      multiply_digit<Form, Form::kHasMinimums>(high, format, run, index, col, totals + col);
      if (has_low) multiply_digit<Form, false>(low, format, run, index, col, totals + col);
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
    int64_t row = 0;
    for (; row + kSumRows <= x.rows; row += kSumRows)
      multiply_runs<Form, kSumRows>(x, row, format, run, begin, end, totals + row * kQuantizedCols);
    for (; row < x.rows; ++row) multiply_runs<Form, 1>(x, row, format, run, begin, end, totals + row * kQuantizedCols);
  }
}

}  // namespace

void multiply_quantized(const Digits& x, const QuantizedFormat& format, const void* panel, const Matrix& c,
                        const float* bias, float* totals) {
  for (int64_t i = 0; i < x.rows * kQuantizedCols; i += kLanes) store(totals + i, Vec{});
  visit_form(format,
             [&](auto form) { multiply_panel<decltype(form)>(x, format, static_cast<const char*>(panel), totals); });
  for (int64_t row = 0; row < x.rows; ++row)
    for (int64_t col = 0; col < kQuantizedCols; col += kLanes) {
      float* total = totals + row * kQuantizedCols + col;
      store(total, load(total) * x.row_scales[row]);
    }
  convert_rows({totals, DType::kFloat32, x.rows, c.cols, kQuantizedCols, 1}, DType::kFloat32, bias, c);
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
