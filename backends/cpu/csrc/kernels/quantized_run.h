// What products of integers with a panel share: its runs of codes one after another, and the sums of rows.
// Included by kernels/*.cc only; see vec.h.
#pragma once

#include <type_traits>

#include "kernels/quantized_product.h"
#include "kernels/simd.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

// Codes of so many k's stay in the first-level caches while the rows pass: 32 KB of 8 bits.
constexpr int64_t kBlockDepth = 512;

// Bytes of a panel from what is multiplied to what is asked for: 8 KiB in 4 bits, 16 KiB in 8. A line is asked for
// beside each one that is loaded. All lines of a run at once were slower, see docs/performance/tried_products.md.
template <class Form>
constexpr int64_t kAhead = 2048 * Form::kBits;
constexpr int kVectorsOfLine = 16 / kLanes;  // 64 bytes

// Beside the n-th vector of `words`.
template <class Form>
inline void fetch_ahead(const uint32_t* words, int n) {
  if (n % kVectorsOfLine == 0) __builtin_prefetch(reinterpret_cast<const char*>(words + n * kLanes) + kAhead<Form>);
}

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
  const uint32_t* words(int per_word) const {
    return reinterpret_cast<const uint32_t*>(group_ + scale_bytes(format_)) + (k_ - begin_) / per_word * kQuantizedCols;
  }
  int64_t num_words(int per_word) const {
    const int64_t left = format_.depth - k_;
    return ((left < size_ ? left : size_) + per_word - 1) / per_word;
  }
  // Beside the scales that are loaded. Inlined: GCC 12 takes the call for one without effect, and drops it.
  template <class Form>
  [[gnu::always_inline]] void fetch_ahead() const {
    if (k_ != begin_) return;
    for (int64_t at = 0; at < scale_bytes(format_); at += 64) __builtin_prefetch(group_ + at + kAhead<Form>);
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

// f(the number of rows as a constant, the first row) of each tile.
template <class F>
void visit_tiles(int64_t rows, F f) {
  for (int64_t row = 0; row < rows;) {
    const int64_t count = tile_of(row, rows).count;
    if (count == 8) f(std::integral_constant<int, 8>{}, row);
    if (count == 4) f(std::integral_constant<int, 4>{}, row);
    if (count == 2) f(std::integral_constant<int, 2>{}, row);
    if (count == 1) f(std::integral_constant<int, 1>{}, row);
    row += count;
  }
}

// kQuantizedCols sums for each row.
void clear_rows(float* totals, int64_t rows) {
  for (int64_t i = 0; i < rows * kQuantizedCols; i += kLanes) store(totals + i, Vec{});
}

// c = totals * row_scales + bias, for as many columns as c has.
void write_rows(float* totals, int64_t rows, const float* row_scales, const float* bias, const Matrix& c) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t col = 0; col < kQuantizedCols; col += kLanes) {
      float* total = totals + row * kQuantizedCols + col;
      store(total, load(total) * row_scales[row]);
    }
  convert_rows({totals, DType::kFloat32, rows, c.cols, kQuantizedCols, 1}, DType::kFloat32, bias, c);
}

}  // namespace
}  // namespace fusionkit_cpu::FUSIONKIT_ISA
