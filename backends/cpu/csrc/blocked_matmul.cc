#include "blocked_matmul.h"

#include <algorithm>
#include <cstring>

#include "buffer.h"
#include "kernels/products.h"
#include "panels.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace {

// Panels of B made at a time: below glibc's limit for memory that is returned to the system at once.
constexpr int64_t kPanelsBytes = int64_t{8} << 20;
constexpr int64_t kTileCols = 512;
// From here on packing B costs less than reading it in short pieces.
constexpr int64_t kMostRowsAsStored = 96;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
      FUSIONKIT_DISPATCH(multiply_tile, slice_rows(a, row, row_end), panels, tile_panels_at,
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
      FUSIONKIT_DISPATCH(multiply_tile, a, panels, panel.as<void>(), slice_cols(c, col, col_end),
                         offset(options.bias, col), options.accumulate, scratch.as<void>());
    }
  });
}

// A's rows as multiply_unpacked takes them.
Matrix in_steps(const Matrix& a, const PanelFormat& panels, const Buffer& memory) {
  Matrix to = contiguous(memory.as<void>(), panels.compute, a.rows, panels.depth);
  if (panels.depth > a.cols) std::memset(memory.as<void>(), 0, a.rows * panels.depth * element_size(panels.compute));
  to.cols = a.cols;
  convert(a, DType::kFloat32, nullptr, to);
  return to;
}

// The sums of a strip of columns stay in the first-level cache, beside what is read of B meanwhile.
void multiply_as_stored(const Matrix& a, const Matrix& b, DType arithmetic, const PanelFormat& panels, const Matrix& c,
                        const ProductOptions& options) {
  constexpr int64_t kUnit = 64, kSumBytes = 24 << 10;  // columns; bytes
  const int64_t strip = std::max<int64_t>(1, kSumBytes / sizeof(float) / a.rows / kUnit) * kUnit;
  const Buffer memory(a.rows * panels.depth * element_size(panels.compute));
  const Matrix rows = in_steps(a, panels, memory);
  parallel_for(ceil_div(b.cols, kUnit), 4, [&](int64_t begin, int64_t end, int) {
    const Buffer scratch(FUSIONKIT_DISPATCH(unpacked_scratch_bytes, a.rows, strip));
    const int64_t last = std::min(end * kUnit, b.cols);
    for (int64_t col = begin * kUnit; col < last; col += strip) {
      const int64_t col_end = std::min(col + strip, last);
      FUSIONKIT_DISPATCH(multiply_unpacked, rows, slice_cols(b, col, col_end), arithmetic, slice_cols(c, col, col_end),
                         offset(options.bias, col), options.accumulate, scratch.as<void>());
    }
  });
}

}  // namespace

PanelFormat blocked_panels(DType arithmetic, int64_t depth) {
  return FUSIONKIT_DISPATCH(own_panels, compute_dtype(arithmetic), depth);
}

void blocked_matmul(const Matrix& a, const Matrix& b, DType arithmetic, const Matrix& c,
                    const ProductOptions& options) {
  const PanelFormat panels = blocked_panels(arithmetic, b.rows);
  if (a.rows <= kMostRowsAsStored && b.col_stride == 1) return multiply_as_stored(a, b, arithmetic, panels, c, options);
  if (a.rows <= FUSIONKIT_DISPATCH(tile_rows)) return multiply_panel_by_panel(a, b, arithmetic, panels, c, options);
  const int64_t step = std::max<int64_t>(1, kPanelsBytes / panels.panel_bytes()) * panels.cols;
  const Buffer packed(std::min(panels.count(b.cols), step / panels.cols) * panels.panel_bytes());
  for (int64_t col = 0; col < b.cols; col += step) {
    const int64_t end = std::min(col + step, b.cols);
    pack_panels(slice_cols(b, col, end), arithmetic, panels, packed.as<void>());
    multiply(a, panels, packed.as<void>(), slice_cols(c, col, end), {offset(options.bias, col), options.accumulate});
  }
}

void blocked_matmul_packed(const Matrix& a, const PanelFormat& panels, const void* packed, const Matrix& c,
                           const ProductOptions& options) {
  multiply(a, panels, packed, c, options);
}

}  // namespace fusionkit_cpu
