#include "quantized_gradient.h"

#include <algorithm>

#include "blocked_matmul.h"
#include "buffer.h"
#include "kernels/quantized_gradient.h"
#include "parallel.h"
#include "quantized_weight.h"

namespace fusionkit_cpu {
namespace {

// Floats of the weight made at a time: below glibc's limit for memory that goes back at once. Each time all sums are
// read and written once.
constexpr int64_t kValuesBytes = int64_t{16} << 20;
// Sums of a dx in 16 bits held at a time: 1213 rows of 13824.
constexpr int64_t kSumsBytes = int64_t{64} << 20;

// Of `count` panels of the weight, columns of dx: panels of the transpose, count * kQuantizedCols deep.
void fill(const QuantizedPanels& weight, int64_t first, int64_t count, const PanelFormat& to, float* panels) {
  const int64_t depth = weight.format.depth;
  parallel_for(count, 1, [&](int64_t begin, int64_t end, int) {
    const Buffer values(kQuantizedCols * depth * sizeof(float));
    for (int64_t i = begin; i < end; ++i) {
      FUSIONKIT_DISPATCH(dequantize_panel, weight.format, weight.at(first + i), values.as<float>());
      FUSIONKIT_DISPATCH(transpose_values, values.as<float>(), depth, to, i * kQuantizedCols, panels);
    }
  });
}

// sums = dy W^T in float32. Pieces begin at whole chains, so the order is that of one product.
void sum_of_pieces(const Matrix& dy, const QuantizedPanels& weight, const Matrix& sums) {
  const int64_t depth = weight.format.depth, num_panels = quantized_panels(dy.cols);
  const int64_t width = FUSIONKIT_DISPATCH(own_panels, DType::kFloat32, kQuantizedCols).cols;
  const int64_t padded = (depth + width - 1) / width * width;
  const int64_t panel_bytes = kQuantizedCols * padded * int64_t{sizeof(float)};
  const int64_t step = std::clamp<int64_t>(kValuesBytes / panel_bytes, 1, num_panels);
  const Buffer memory(step * panel_bytes);
  for (int64_t first = 0; first < num_panels; first += step) {
    const int64_t count = std::min(step, num_panels - first), col = first * kQuantizedCols;
    const PanelFormat transpose = blocked_panels(DType::kFloat32, count * kQuantizedCols);
    fill(weight, first, count, transpose, memory.as<float>());
    const Matrix piece = slice_cols(dy, col, std::min(col + count * kQuantizedCols, dy.cols));
    blocked_matmul_packed(piece, transpose, memory.as<void>(), sums, {nullptr, first > 0});
  }
}

}  // namespace

void gradient_quantized(const Matrix& dy, const void* packed, const Matrix& dx) {
  if (dx.rows == 0 || dx.cols == 0) return;
  if (dy.cols == 0) return product(dy, contiguous(nullptr, dy.dtype, 0, dx.cols), dy.dtype, dx);
  const QuantizedPanels weight = panels_of(packed);
  if (dx.dtype == DType::kFloat32) return sum_of_pieces(dy, weight, dx);
  const int64_t row_bytes = dx.cols * int64_t{sizeof(float)};
  const int64_t step = std::clamp<int64_t>(kSumsBytes / row_bytes, 1, dx.rows);
  const Buffer memory(step * row_bytes);
  for (int64_t row = 0; row < dx.rows; row += step) {
    const int64_t end = std::min(row + step, dx.rows);
    const Matrix sums = contiguous(memory.as<void>(), DType::kFloat32, end - row, dx.cols);
    sum_of_pieces(slice_rows(dy, row, end), weight, sums);
    convert(sums, DType::kFloat32, nullptr, slice_rows(dx, row, end));
  }
}

}  // namespace fusionkit_cpu
