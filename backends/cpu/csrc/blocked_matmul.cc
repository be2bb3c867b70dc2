#include "blocked_matmul.h"

#include <algorithm>

#include "buffer.h"
#include "kernels/products.h"
#include "panels.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace {

// Panels of B made at a time: below glibc's limit for memory that is returned to the system at once.
constexpr int64_t kPanelsBytes = int64_t{8} << 20;
constexpr int64_t kTileCols = 512;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

PanelFormat panels_for(DType arithmetic, int64_t depth) {
  return FUSIONKIT_DISPATCH(own_panels, compute_dtype(arithmetic), depth);
}

const float* offset(const float* bias, int64_t cols) { return bias == nullptr ? nullptr : bias + cols; }

void multiply(const Matrix& a, const PanelFormat& panels, const void* packed, const Matrix& c,
              const ProductOptions& options) {
  const int64_t row_tiles = ceil_div(a.rows, FUSIONKIT_DISPATCH(tile_rows));
  const int64_t tile_rows = ceil_div(a.rows, row_tiles);
  // Two tiles a thread at the least, of whole panels. The sums do not depend on the tiles.
  const int64_t wanted_tiles = ceil_div(2 * num_threads(), row_tiles);
  const int64_t tile_panels = std::min(kTileCols / panels.cols, ceil_div(panels.count(c.cols), wanted_tiles));
  const int64_t tile_cols = tile_panels * panels.cols;
  parallel_for(row_tiles * ceil_div(c.cols, tile_cols), 1, [&](int64_t begin, int64_t end, int) {
    const Buffer scratch(FUSIONKIT_DISPATCH(tile_scratch_bytes, tile_cols));
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile % row_tiles * tile_rows, col = tile / row_tiles * tile_cols;
      const int64_t row_end = std::min(row + tile_rows, a.rows), col_end = std::min(col + tile_cols, c.cols);
      const char* tile_panels_at = static_cast<const char*>(packed) + col / panels.cols * panels.panel_bytes();
      FUSIONKIT_DISPATCH(multiply_tile, slice_rows(a, row, row_end), panels.compute, tile_panels_at,
                         slice_cols(slice_rows(c, row, row_end), col, col_end), offset(options.bias, col),
                         options.accumulate, scratch.as<void>());
    }
  });
}

// Few rows: each thread packs a panel and multiplies it while it is in its own cache.
void multiply_panel_by_panel(const Matrix& a, const Matrix& b, DType arithmetic, const PanelFormat& panels,
                             const Matrix& c, const ProductOptions& options) {
  const int64_t num_strips = FUSIONKIT_DISPATCH(num_strips, panels);
  parallel_for(panels.count(b.cols), 1, [&](int64_t begin, int64_t end, int) {
    const Buffer panel(panels.panel_bytes()), scratch(FUSIONKIT_DISPATCH(tile_scratch_bytes, panels.cols));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t col = i * panels.cols, col_end = std::min(col + panels.cols, b.cols);
      FUSIONKIT_DISPATCH(pack_strips, slice_cols(b, col, col_end), arithmetic, panels, 0, num_strips, panel.as<void>());
      FUSIONKIT_DISPATCH(multiply_tile, a, panels.compute, panel.as<void>(), slice_cols(c, col, col_end),
                         offset(options.bias, col), options.accumulate, scratch.as<void>());
    }
  });
}

void multiply_few_rows(const Matrix& a, const Matrix& b, DType arithmetic, const Matrix& c,
                       const ProductOptions& options) {
  constexpr int64_t kStrip = 64;  // columns
  const Buffer a_floats(a.rows * a.cols * sizeof(float));
  convert(a, DType::kFloat32, nullptr, contiguous(a_floats.as<void>(), DType::kFloat32, a.rows, a.cols));
  parallel_for(ceil_div(b.cols, kStrip), 4, [&](int64_t begin, int64_t end, int) {
    const int64_t col = begin * kStrip, col_end = std::min(end * kStrip, b.cols);
    const Buffer scratch(FUSIONKIT_DISPATCH(few_rows_scratch_bytes, a.rows, col_end - col));
    FUSIONKIT_DISPATCH(multiply_few_rows, a_floats.as<float>(), slice_cols(b, col, col_end), arithmetic,
                       slice_cols(c, col, col_end), offset(options.bias, col), options.accumulate, scratch.as<void>());
  });
}

}  // namespace

void blocked_matmul(const Matrix& a, const Matrix& b, DType arithmetic, const Matrix& c,
                    const ProductOptions& options) {
  if (FUSIONKIT_DISPATCH(few_rows, a, b)) return multiply_few_rows(a, b, arithmetic, c, options);
  const PanelFormat panels = panels_for(arithmetic, b.rows);
  if (a.rows <= FUSIONKIT_DISPATCH(tile_rows)) return multiply_panel_by_panel(a, b, arithmetic, panels, c, options);
  const int64_t step = std::max<int64_t>(1, kPanelsBytes / panels.panel_bytes()) * panels.cols;
  const Buffer packed(std::min(panels.count(b.cols), step / panels.cols) * panels.panel_bytes());
  for (int64_t col = 0; col < b.cols; col += step) {
    const int64_t end = std::min(col + step, b.cols);
    pack_panels(slice_cols(b, col, end), arithmetic, panels, packed.as<void>());
    multiply(a, panels, packed.as<void>(), slice_cols(c, col, end), {offset(options.bias, col), options.accumulate});
  }
}

size_t blocked_packed_size(DType arithmetic, int64_t rows, int64_t cols) {
  const PanelFormat panels = panels_for(arithmetic, rows);
  return panels.count(cols) * panels.panel_bytes();
}

void blocked_pack(const Matrix& b, DType arithmetic, void* packed) {
  pack_panels(b, arithmetic, panels_for(arithmetic, b.rows), packed);
}

void blocked_matmul_packed(const Matrix& a, DType arithmetic, const void* packed, const Matrix& c,
                           const ProductOptions& options) {
  multiply(a, panels_for(arithmetic, a.cols), packed, c, options);
}

}  // namespace fusionkit_cpu
