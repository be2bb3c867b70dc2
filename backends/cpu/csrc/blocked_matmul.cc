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

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

const float* offset(const float* bias, int64_t cols) { return bias == nullptr ? nullptr : bias + cols; }

// A's rows laid out once for all columns of B, tile after tile.
class LeftTiles {
 public:
  LeftTiles(const Matrix& a, const PanelFormat& panels)
      : depth_(a.cols),
        tile_rows_(FUSIONKIT_DISPATCH(tile_rows, a.rows)),
        tile_bytes_(FUSIONKIT_DISPATCH(left_bytes, tile_rows_, panels)),
        count_(ceil_div(a.rows, tile_rows_)),
        memory_(count_ * tile_bytes_) {
    constexpr int64_t kGrain = 1 << 14;  // elements worth a thread
    const int64_t blocks = FUSIONKIT_DISPATCH(num_blocks, panels), elements = tile_rows_ * depth_ / blocks;
    parallel_for(count_ * blocks, kGrain / (elements + 1) + 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        FUSIONKIT_DISPATCH(pack_left, rows_of(a, i / blocks), panels, i % blocks, i % blocks + 1,
                           memory_.as<char>() + i / blocks * tile_bytes_);
    });
  }

  int64_t count() const { return count_; }

  // The columns of C that meet these panels.
  void multiply(int64_t tile, const PanelFormat& panels, const void* packed, const Matrix& c,
                const ProductOptions& options, const Buffer& scratch) const {
    FUSIONKIT_DISPATCH(multiply_tile, memory_.as<char>() + tile * tile_bytes_, panels, packed, depth_, rows_of(c, tile),
                       options.bias, options.accumulate, scratch.as<void>());
  }

 private:
  Matrix rows_of(const Matrix& m, int64_t tile) const {
    return slice_rows(m, tile * tile_rows_, std::min((tile + 1) * tile_rows_, m.rows));
  }

  int64_t depth_, tile_rows_, tile_bytes_, count_;
  Buffer memory_;
};

void multiply(const LeftTiles& left, const PanelFormat& panels, const void* packed, const Matrix& c,
              const ProductOptions& options) {
  // Eight tiles a thread at the least, of whole panels. The sums do not depend on the tiles.
  const int64_t wanted_tiles = ceil_div(8 * num_threads(), left.count());
  const int64_t tile_panels = std::min(kTileCols / panels.cols, ceil_div(panels.count(c.cols), wanted_tiles));
  const int64_t tile_cols = tile_panels * panels.cols;
  parallel_for(left.count() * ceil_div(c.cols, tile_cols), 1, [&](int64_t begin, int64_t end, int) {
    const Buffer scratch(FUSIONKIT_DISPATCH(tile_scratch_bytes, tile_cols));
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t col = tile / left.count() * tile_cols, col_end = std::min(col + tile_cols, c.cols);
      left.multiply(tile % left.count(), panels,
                    static_cast<const char*>(packed) + col / panels.cols * panels.panel_bytes(),
                    slice_cols(c, col, col_end), {offset(options.bias, col), options.accumulate}, scratch);
    }
  });
}

// Few rows: each thread packs a panel and multiplies it while it is in its own cache.
void multiply_panel_by_panel(const LeftTiles& left, const Matrix& b, DType arithmetic, const PanelFormat& panels,
                             const Matrix& c, const ProductOptions& options) {
  const int64_t num_strips = FUSIONKIT_DISPATCH(num_strips, panels);
  parallel_for(panels.count(b.cols), 1, [&](int64_t begin, int64_t end, int) {
    const Buffer panel(panels.panel_bytes()), scratch(FUSIONKIT_DISPATCH(tile_scratch_bytes, panels.cols));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t col = i * panels.cols, col_end = std::min(col + panels.cols, b.cols);
      FUSIONKIT_DISPATCH(pack_strips, slice_cols(b, col, col_end), arithmetic, panels, 0, num_strips, panel.as<void>());
      left.multiply(0, panels, panel.as<void>(), slice_cols(c, col, col_end),
                    {offset(options.bias, col), options.accumulate}, scratch);
    }
  });
}

// f(rows of A, of C) for groups of rows: as many as are laid out at a time.
template <class F>
void for_each_group(const Matrix& a, const Matrix& c, const PanelFormat& panels, const F& f) {
  constexpr int64_t kLeftBytes = int64_t{64} << 20;
  const int64_t row_bytes = panels.depth * element_size(panels.compute);
  const int64_t fitting = std::max<int64_t>(1, kLeftBytes / std::max<int64_t>(row_bytes, 1));
  const int64_t step = ceil_div(a.rows, ceil_div(a.rows, fitting));
  for (int64_t row = 0; row < a.rows; row += step) {
    const int64_t end = std::min(row + step, a.rows);
    f(slice_rows(a, row, end), slice_rows(c, row, end));
  }
}

// All panels of B, some at a time.
void multiply_in_pieces(const LeftTiles& left, const Matrix& b, DType arithmetic, const PanelFormat& panels,
                        const Matrix& c, const ProductOptions& options) {
  const int64_t step = std::max<int64_t>(1, kPanelsBytes / panels.panel_bytes()) * panels.cols;
  const Buffer packed(std::min(panels.count(b.cols), step / panels.cols) * panels.panel_bytes());
  for (int64_t col = 0; col < b.cols; col += step) {
    const int64_t end = std::min(col + step, b.cols);
    pack_panels(slice_cols(b, col, end), arithmetic, panels, packed.as<void>());
    multiply(left, panels, packed.as<void>(), slice_cols(c, col, end), {offset(options.bias, col), options.accumulate});
  }
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
  if (a.rows <= FUSIONKIT_DISPATCH(most_unpacked_rows) && b.col_stride == 1)
    return multiply_as_stored(a, b, arithmetic, panels, c, options);
  for_each_group(a, c, panels, [&](const Matrix& a_rows, const Matrix& c_rows) {
    const LeftTiles left(a_rows, panels);
    const auto by = left.count() == 1 ? multiply_panel_by_panel : multiply_in_pieces;
    by(left, b, arithmetic, panels, c_rows, options);
  });
}

void blocked_matmul_packed(const Matrix& a, const PanelFormat& panels, const void* packed, const Matrix& c,
                           const ProductOptions& options) {
  for_each_group(a, c, panels, [&](const Matrix& a_rows, const Matrix& c_rows) {
    multiply(LeftTiles(a_rows, panels), panels, packed, c_rows, options);
  });
}

}  // namespace fusionkit_cpu
