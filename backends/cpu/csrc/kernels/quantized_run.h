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

// Codes from those that are multiplied to those that are asked for. One line is asked for beside each one that is
// loaded: all lines of a run at once wait for room, and the products with them.
constexpr int64_t kAhead = 16384;
constexpr int kVectorsOfLine = 16 / kLanes;  // 64 bytes

// The line that is multiplied later, beside the n-th vector of `words`.
template <class Form>
inline void fetch_ahead(const uint32_t* words, int n) {
  constexpr int64_t kBytes = kAhead * Form::kBits / 8;
  if (n % kVectorsOfLine == 0) __builtin_prefetch(reinterpret_cast<const char*>(words + n * kLanes) + kBytes);
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
