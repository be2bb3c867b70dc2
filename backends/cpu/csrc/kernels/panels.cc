// Operands laid out for a micro-kernel, from storage of any dtype and strides.
#include "kernels/panels.h"

#include "kernels/products.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

template <int Width, class Entries>
void pack(const Entries& entries, const Matrix& b, const PanelFormat& format, int64_t begin, int64_t end,
          uint32_t* panels) {
  const int64_t num_steps = format.depth / Entries::kStep, num_panels = format.count(b.cols);
  const int64_t strips = num_strips(format);
  for (int64_t i = begin; i < end; ++i) {
    // In the order of b's memory: all columns of some rows, or all rows of some columns.
    const bool by_rows = b.col_stride == 1;
    const int64_t panel = by_rows ? i % num_panels : i / strips;
    const int64_t step = (by_rows ? i / num_panels : i % strips) * kLanes;
    pack_strip<Width>(entries, b, step * Entries::kStep, panel * Width, num_steps - step,
                      panels + (panel * num_steps + step) * Width);
  }
}

template <class Entries, class To>
void transpose_tile(const Entries& entries, const Matrix& from, int64_t row, int64_t col, const Matrix& to) {
  UintVec tile[kLanes];
  const int64_t cols = from.cols - col < kLanes ? from.cols - col : kLanes;
  load_tile(entries, from, row, col, cols, tile);
  transpose(tile);
  const int64_t depth = kLanes * Entries::kStep, left = from.rows - row;
  const int64_t bytes = (left < depth ? left : depth) * static_cast<int64_t>(sizeof(To));
  for (int64_t i = 0; i < cols; ++i) {
    auto* out = static_cast<To*>(to.data) + (col + i) * to.row_stride + row;
    if (left >= depth)
      std::memcpy(out, &tile[i], sizeof tile[i]);
    else
      std::memcpy(out, &tile[i], bytes);
  }
}

}  // namespace

PanelFormat own_panels(DType compute, int64_t depth) { return {compute, kPanelCols, padded_depth(compute, depth)}; }

bool packs_panels(const PanelFormat& format) { return format.cols == kPanelCols || format.cols == kWidestPanel; }

int64_t num_strips(const PanelFormat& format) {
  const int64_t rows = in_pairs(format.compute) ? 2 * kLanes : kLanes;
  return (format.depth + rows - 1) / rows;
}

void pack_strips(const Matrix& b, DType round_to, const PanelFormat& format, int64_t begin, int64_t end, void* panels) {
  auto* out = static_cast<uint32_t*>(panels);
  visit_entries(b.dtype, round_to, format.compute, [&](auto entries) {
    if (format.cols == kWidestPanel) return pack<kWidestPanel>(entries, b, format, begin, end, out);
    pack<kPanelCols>(entries, b, format, begin, end, out);
  });
}

void transpose_rows(const Matrix& from, const Matrix& to, int64_t begin, int64_t end) {
  visit_entries(from.dtype, from.dtype, to.dtype, [&](auto entries) {
    using Entries = decltype(entries);
    using To = std::conditional_t<Entries::kStep == 2, BFloat16, float>;
    const Matrix part = slice_cols(from, begin, end), part_to = slice_rows(to, begin, end);
    for (int64_t col = 0; col < part.cols; col += kLanes)
      for (int64_t row = 0; row < part.rows; row += kLanes * Entries::kStep)
        transpose_tile<Entries, To>(entries, part, row, col, part_to);
  });
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
