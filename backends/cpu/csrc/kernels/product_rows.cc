// What surrounds a product: rounding of operands and results, the bias' gradient.
#include "kernels/lanes.h"
#include "kernels/products.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

template <class From, class To>
void convert(const From* from, int64_t from_stride, DType round_to, const float* bias, To* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec a = round_vector(round_to, load_lanes(from + i * from_stride, from_stride, n - i));
    if (bias != nullptr) a += load_lanes(bias + i, 1, n - i);
    store_lanes(to + i, n - i, a);
  }
}

// Rows added one after another before the block joins the sum: long sums keep their small addends.
constexpr int kRowBlock = 64;
constexpr int kStripVectors = 4;

template <class T>
void sum_strip(const Matrix& m, const T* from, int64_t col, float* sums) {
  from += col * m.col_stride;
  Vec total[kStripVectors] = {};
  for (int64_t row = 0; row < m.rows;) {
    const int64_t end = m.rows - row < kRowBlock ? m.rows : row + kRowBlock;
    Vec block[kStripVectors] = {};
    for (; row < end; ++row)
      for (int v = 0; v < kStripVectors; ++v)
        if (const int64_t j = v * kLanes; col + j < m.cols)
          block[v] += load_lanes(from + row * m.row_stride + j * m.col_stride, m.col_stride, m.cols - col - j);
    for (int v = 0; v < kStripVectors; ++v) total[v] += block[v];
  }
  for (int v = 0; v < kStripVectors; ++v)
    if (const int64_t j = col + v * kLanes; j < m.cols) store_lanes(sums + j, m.cols - j, total[v]);
}

}  // namespace

void convert_rows(const Matrix& from, DType round_to, const float* bias, const Matrix& to) {
  if (round_to == from.dtype || round_to == to.dtype) round_to = DType::kFloat32;
  visit_floating(from.dtype, [&](auto* source_type) {
    visit_floating(to.dtype, [&](auto* target_type) {
      for (int64_t row = 0; row < from.rows; ++row)
        convert(static_cast<decltype(source_type)>(element(from, row, 0)), from.col_stride, round_to, bias,
                static_cast<decltype(target_type)>(element(to, row, 0)), from.cols);
    });
  });
}

void sum_columns(const Matrix& m, float* sums) {
  visit_floating(m.dtype, [&](auto* type) {
    for (int64_t col = 0; col < m.cols; col += kStripVectors * kLanes)
      sum_strip(m, static_cast<decltype(type)>(m.data), col, sums);
  });
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
