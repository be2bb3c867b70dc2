#include "quantized_rows.h"

#include <algorithm>
#include <cmath>

#include "blocked_matmul.h"
#include "buffer.h"
#include "kernels/quantized_bytes.h"
#include "kernels/quantized_product.h"
#include "parallel.h"
#include "quantized_weight.h"

namespace fusionkit_cpu {
namespace {

constexpr int64_t kRowGrain = 4;  // rows worth a thread

const float* offset(const float* bias, int64_t cols) { return bias == nullptr ? nullptr : bias + cols; }

// `a` with rows that are contiguous; `memory` holds what is copied.
Matrix in_rows(const Matrix& a, const Buffer& memory) {
  if (a.col_stride == 1) return a;
  const Matrix to = contiguous(memory.as<void>(), a.dtype, a.rows, a.cols);
  convert(a, a.dtype, nullptr, to);
  return to;
}

// Sizes that Digits and RoundedRows both have.
template <class Rows>
Rows sized(const Matrix& a, const QuantizedFormat& format) {
  Rows rows{};
  rows.rows = a.rows;
  rows.depth = (a.cols + kRun - 1) / kRun * kRun;
  rows.run = run_of(format);
  rows.num_runs = rows.depth / rows.run;
  return rows;
}

// The digits of some rows, and the memory that they are in.
class RowDigits {
 public:
  RowDigits(const Matrix& a, const QuantizedFormat& format)
      : digits_(sized<Digits>(a, format)),
        values_(2 * sizeof(int16_t) * a.rows * digits_.depth),
        sums_(2 * sizeof(int32_t) * a.rows * digits_.num_runs),
        scales_(sizeof(float) * a.rows * (3 * digits_.num_runs + 1)),
        has_low_(a.rows * digits_.num_runs) {
    digits_.rounds_x = format.rounds_x;
    digits_.digits = values_.as<int16_t>();
    digits_.digit_sums = sums_.as<int32_t>();
    digits_.has_low = has_low_.as<uint8_t>();
    digits_.digit_scales = scales_.as<float>();
    digits_.run_sums = digits_.digit_scales + 2 * a.rows * digits_.num_runs;
    digits_.row_scales = digits_.run_sums + a.rows * digits_.num_runs;
    parallel_for(a.rows, kRowGrain,
                 [&](int64_t begin, int64_t end, int) { FUSIONKIT_DISPATCH(make_digits, a, begin, end, digits_); });
  }

  const float* row_scales() const { return digits_.row_scales; }
  void multiply(const QuantizedFormat& format, const char* panel, const Matrix& c, const float* bias,
                float* sums) const {
    FUSIONKIT_DISPATCH(multiply_quantized, digits_, format, panel, c, bias, sums);
  }

 private:
  Digits digits_;
  Buffer values_, sums_, scales_, has_low_;
};

// Some rows as bytes, and the memory that they are in.
class RowBytes {
 public:
  RowBytes(const Matrix& a, const QuantizedFormat& format)
      : rows_(sized<RoundedRows>(a, format)),
        codes_(a.rows * rows_.depth),
        sums_(sizeof(int32_t) * a.rows * rows_.num_runs),
        scales_(sizeof(float) * a.rows * (2 * rows_.num_runs + 1)) {
    rows_.codes = codes_.as<int8_t>();
    rows_.first_sums = sums_.as<int32_t>();
    rows_.scales = scales_.as<float>();
    rows_.sums = rows_.scales + a.rows * rows_.num_runs;
    rows_.row_scales = rows_.sums + a.rows * rows_.num_runs;
    parallel_for(a.rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
      FUSIONKIT_DISPATCH(round_rows, a, begin, end, format, rows_);
    });
  }

  const float* row_scales() const { return rows_.row_scales; }
  void multiply(const QuantizedFormat& format, const char* panel, const Matrix& c, const float* bias,
                float* sums) const {
    FUSIONKIT_DISPATCH(multiply_bytes, rows_, format, panel, c, bias, sums);
  }

 private:
  RoundedRows rows_;
  Buffer codes_, sums_, scales_;
};

template <class Rows>
void multiply_panels(const Rows& rows, const QuantizedFormat& format, const char* panels, const Matrix& c,
                     const float* bias) {
  parallel_for(quantized_panels(c.cols), 1, [&](int64_t begin, int64_t end, int) {
    const Buffer sums(sizeof(float) * kQuantizedCols * c.rows);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t col = i * kQuantizedCols, col_end = std::min(col + kQuantizedCols, c.cols);
      rows.multiply(format, panels + i * panel_bytes(format), slice_cols(c, col, col_end), offset(bias, col),
                    sums.as<float>());
    }
  });
}

// Panels of floats made at a time: below glibc's limit for memory that is returned to the system at once.
constexpr int64_t kValuesBytes = int64_t{8} << 20;

void multiply_dequantized(const Matrix& a, const QuantizedFormat& format, const char* panels, const Matrix& c,
                          const float* bias) {
  const PanelFormat own = blocked_panels(DType::kFloat32, format.depth);
  const int64_t num_panels = quantized_panels(c.cols), values = kQuantizedCols * format.depth;
  const int64_t step = std::clamp<int64_t>(kValuesBytes / int64_t{sizeof(float)} / values, 1, num_panels);
  const Buffer memory(step * values * sizeof(float));
  for (int64_t first = 0; first < num_panels; first += step) {
    const int64_t count = std::min(step, num_panels - first);
    parallel_for(count, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        FUSIONKIT_DISPATCH(dequantize_panel, format, panels + (first + i) * panel_bytes(format),
                           memory.as<float>() + i * values);
    });
    const int64_t col = first * kQuantizedCols, col_end = std::min(col + count * kQuantizedCols, c.cols);
    blocked_matmul_packed(a, own, memory.as<void>(), slice_cols(c, col, col_end), {offset(bias, col)});
  }
}

template <class Rows>
void multiply_some_rows(const Matrix& a, const QuantizedFormat& format, const char* panels, const Matrix& c,
                        const float* bias) {
  const Rows rows(a, format);
  multiply_panels(rows, format, panels, c, bias);
  for (int64_t row = 0; row < a.rows; ++row)
    if (std::isnan(rows.row_scales()[row]))
      multiply_dequantized(slice_rows(a, row, row + 1), format, panels, slice_rows(c, row, row + 1), bias);
}

}  // namespace

void product_quantized(const Matrix& a, const void* packed, const Matrix& c, const float* bias) {
  if (c.rows == 0 || c.cols == 0) return;
  // A weight without elements leaves the bias: a product of the ordinary kind.
  if (a.cols == 0) return product(a, contiguous(nullptr, a.dtype, 0, c.cols), a.dtype, c, {bias});
  const auto [format, panels] = panels_of(packed);
  const bool in_bytes = format.rounds_x && FUSIONKIT_DISPATCH(multiplies_bytes, format.bits);
  const Buffer memory(a.col_stride == 1 ? 0 : a.rows * a.cols * element_size(a.dtype));
  const Matrix all = in_rows(a, memory);
  for (int64_t begin = 0; begin < a.rows; begin += kDigitRows) {
    const int64_t end = std::min(begin + kDigitRows, a.rows);
    const Matrix rows = slice_rows(all, begin, end), to = slice_rows(c, begin, end);
    in_bytes ? multiply_some_rows<RowBytes>(rows, format, panels, to, bias)
             : multiply_some_rows<RowDigits>(rows, format, panels, to, bias);
  }
}

}  // namespace fusionkit_cpu
