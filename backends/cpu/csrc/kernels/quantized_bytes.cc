// The product of bytes: runs of x in int8 with the codes of a panel, exact in integers, and then scaled in float32.
#include "kernels/quantized_bytes.h"

#include "kernels/quads.h"

#if defined(__AVX2__)

#include <type_traits>

#include "kernels/quantized_form.h"
#include "kernels/quantized_run.h"
#include "kernels/row_runs.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

static_assert(kRun <= 8 * 4);  // quads that a sum holds

constexpr int kQuads = 2;  // of a word

// Form::kExcess included.
inline UintVec quad_of(UintVec word, int i) { return (i == 0 ? word : word >> 4) & 0x0f0f0f0fu; }

// The sums of so many rows take 8 registers of 16, or up to 16 of 32 with AVX-512.
template <int kRows>
constexpr int kVectorsOf = kLanes == 16 ? (kRows > 4 ? 16 / kRows : 4) : 8 / kRows;

template <int kRows>
using TileSums = IntVec[kRows][kVectorsOf<kRows>];

inline UintVec broadcast_quad(const int8_t* quad) {
  uint32_t all;
  __builtin_memcpy(&all, quad, sizeof all);
  return UintVec{} + all;
}

// sums += the rows' bytes of one word's k's times its codes. x: the tile's, from the word's first k on. Few rows keep
// theirs in registers while the columns pass, and more rows the codes. What comes later is fetched.
template <class Form, int kRows>
[[gnu::always_inline]] inline void add_word(const int8_t* x, const uint32_t* words, TileSums<kRows>& sums) {
  constexpr int kVectors = kVectorsOf<kRows>;
  if constexpr (kRows <= 2) {
    UintVec at[kQuads][kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kQuads * kRows; ++i) at[i / kRows][i % kRows] = broadcast_quad(x + i * 4);
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) {
      fetch_ahead<Form>(words, n);
      const UintVec word = Form::load_word(words + n * kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < kQuads * kRows; ++i) {
        IntVec& sum = sums[i % kRows][n];
        sum = in_order(add_quad_products(sum, quad_of(word, i / kRows), at[i / kRows][i % kRows]));
      }
    }
    return;
  }
  UintVec word[kVectors];
#pragma GCC unroll 4
  for (int n = 0; n < kVectors; ++n) {
    fetch_ahead<Form>(words, n);
    word[n] = Form::load_word(words + n * kLanes);
  }
#pragma GCC unroll 2
  for (int i = 0; i < kQuads; ++i)
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const UintVec at = broadcast_quad(x + (i * kRows + row) * 4);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n)
        sums[row][n] = in_order(add_quad_products(sums[row][n], quad_of(word[n], i), at));
    }
}

// What a tile has of one run.
template <int kRows>
struct TileRun {
  const int8_t* codes;
  const int32_t* first_sums;
  const float *scales, *sums;

  TileRun(const RoundedRows& x, int64_t first_row, int64_t index)
      : codes(x.codes + first_row * x.depth + index * x.run * kRows) {
    const int64_t at = first_row * x.num_runs + index * kRows;
    first_sums = x.first_sums + at;
    scales = x.scales + at;
    sums = x.sums + at;
  }
};

// totals[row] += x times W for a run, and a strip of columns from `col` on.
template <class Form, int kRows>
[[gnu::always_inline]] inline void multiply_run(const TileRun<kRows>& x, const QuantizedFormat& format, const Run& run,
                                                int64_t col, float* totals) {
  constexpr int kVectors = kVectorsOf<kRows>;
  TileSums<kRows> sums;
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) sums[row][n] = IntVec{} + (Form::kExcess ? x.first_sums[row] : 0);
  const uint32_t* words = run.words(Form::kPerWord) + col;
  const int64_t num_words = run.num_words(Form::kPerWord);
#pragma GCC unroll 1
  for (int64_t i = 0; i < num_words; ++i)
    add_word<Form, kRows>(x.codes + i * Form::kPerWord * kRows, words + i * kQuantizedCols, sums);
#pragma GCC unroll 8
  for (int n = 0; n < kVectors; ++n) {
    const Vec scale = load_scale<Form>(format, run.group(), run.block(), col + n * kLanes, 0);
    const Vec minimum =
        Form::kHasMinimums ? load_scale<Form>(format, run.group(), run.block(), col + n * kLanes, 1) : Vec{};
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      float* total = totals + row * kQuantizedCols + n * kLanes;
      const Vec product = __builtin_convertvector(in_32_bits(sums[row][n]), Vec) * x.scales[row];
      Vec sum = fma(product, scale, load(total));
      if (Form::kHasMinimums) sum = fma(broadcast(x.sums[row]), minimum, sum);
      store(total, sum);
    }
  }
}

// Runs [begin, end) of a tile.
template <class Form, int kRows>
void multiply_tile(const RoundedRows& x, int64_t first_row, const QuantizedFormat format, Run run, int64_t begin,
                   int64_t end, float* totals) {
  for (int64_t index = begin; index < end; ++index, run.step()) {
    run.template fetch_ahead<Form>();
    const TileRun<kRows> tile(x, first_row, index);
#pragma GCC unroll 1
    for (int64_t col = 0; col < kQuantizedCols; col += kVectorsOf<kRows> * kLanes)
      multiply_run<Form, kRows>(tile, format, run, col, totals + col);
  }
}

// totals += x W, block by block of runs.
template <class Form>
void multiply_panel(const RoundedRows& x, const QuantizedFormat& format, const char* panel, float* totals) {
  const int64_t num_runs = (format.depth + x.run - 1) / x.run, block = kBlockDepth / x.run;
  for (int64_t begin = 0; begin < num_runs; begin += block) {
    const int64_t end = begin + block < num_runs ? begin + block : num_runs;
    const Run run(format, x.run, panel, begin * x.run);
    visit_tiles(x.rows, [&](auto count, int64_t row) {
      multiply_tile<Form, decltype(count)::value>(x, row, format, run, begin, end, totals + row * kQuantizedCols);
    });
  }
}

void store_run(const RoundedRun& run, int excess, const RunPlace& to, const RoundedRows& rows) {
  int32_t first = 0, last = 0;
  for (int k = 0; k < run.vectors * kLanes; ++k) {
    const int32_t code = run.codes[k / kLanes][k % kLanes];
    rows.codes[(to.word + k / 4 * to.stride) * 4 + k % 4] = static_cast<int8_t>(code);
    (k % 4 < 2 ? first : last) += code;
  }
  rows.first_sums[to.at] = excess_taken_back(excess, first, last);
  rows.scales[to.at] = run.scale;
  rows.sums[to.at] = static_cast<float>(first + last) * run.scale;
}

}  // namespace

bool multiplies_bytes(int bits) { return bits == 4; }

void round_rows(const Matrix& x, int64_t begin, int64_t end, const QuantizedFormat& format, const RoundedRows& rows) {
  const int excess = format.has_minimums ? 0 : 8;
  visit_floating(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    visit_finite_rows<T>(x, begin, end, rows.row_scales, [&](int64_t row, const T* from, float inverse) {
      for (int64_t index = 0; index < rows.num_runs; ++index) {
        const int64_t k = index * rows.run;
        const RunValues run = load_run(from + k, x.cols - k, rows.run, inverse);
        store_run(round_run(run), excess, RunPlace(rows, row, index, 4), rows);
      }
    });
  });
}

void multiply_bytes(const RoundedRows& x, const QuantizedFormat& format, const void* panel, const Matrix& c,
                    const float* bias, float* totals) {
  clear_rows(totals, x.rows);
  visit_form(format, [&](auto form) {
    using Form = decltype(form);
    if constexpr (Form::kBits == 4) multiply_panel<Form>(x, format, static_cast<const char*>(panel), totals);
  });
  write_rows(totals, x.rows, x.row_scales, bias, c);
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA

#else

namespace fusionkit_cpu::FUSIONKIT_ISA {

bool multiplies_bytes(int) { return false; }
void round_rows(const Matrix&, int64_t, int64_t, const QuantizedFormat&, const RoundedRows&) {}
void multiply_bytes(const RoundedRows&, const QuantizedFormat&, const void*, const Matrix&, const float*, float*) {}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA

#endif
