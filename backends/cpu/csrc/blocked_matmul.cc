#include "blocked_matmul.h"

#include <algorithm>
#include <cstring>

#include "buffer.h"
#include "kernels/products.h"
#include "panels.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace {

// What is laid out of A, or of B, at a time: below glibc's limit for memory that is returned to the system at once.
constexpr int64_t kLaidOutBytes = int64_t{24} << 20;
// k's that are laid out at a time where A does not fit at once: each is laid out again for 1536 columns of B.
constexpr int64_t kSegment = 4096, kSegmentMultiple = 1024;
// From here on a panel of B is larger than a core's cache by far.
constexpr int64_t kDeep = 32768;
// Of C that are computed at a time, in float32 if C is not: enough for packing B again.
constexpr int64_t kMostRows = 8192;
constexpr int64_t kTileCols = 512;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t panels_at_a_time(const PanelFormat& panels) {
  return std::max<int64_t>(1, kLaidOutBytes / panels.panel_bytes());
}

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
                const ProductOptions& options, bool is_first, const Buffer& scratch) const {
    const Sums sums = options.accumulate ? Sums::kAdd : is_first ? Sums::kStart : Sums::kContinue;
    FUSIONKIT_DISPATCH(multiply_tile, memory_.as<char>() + tile * tile_bytes_, panels, packed, depth_, rows_of(c, tile),
                       options.bias, sums, scratch.as<void>());
  }

 private:
  Matrix rows_of(const Matrix& m, int64_t tile) const {
    return slice_rows(m, tile * tile_rows_, std::min((tile + 1) * tile_rows_, m.rows));
  }

  int64_t depth_, tile_rows_, tile_bytes_, count_;
  Buffer memory_;
};

// is_first: no k's before these are in c.
void multiply(const LeftTiles& left, const PanelFormat& panels, const void* packed, const Matrix& c,
              const ProductOptions& options, bool is_first) {
  // Eight tiles a thread where there are so many panels. The sums do not depend on the tiles.
  const int64_t wanted_tiles = ceil_div(8 * num_threads(), left.count());
  const int64_t tile_panels =
      std::min(kTileCols / panels.cols, std::max<int64_t>(1, panels.count(c.cols) / wanted_tiles));
  const int64_t tile_cols = tile_panels * panels.cols;
  parallel_for(left.count() * ceil_div(c.cols, tile_cols), 1, [&](int64_t begin, int64_t end, int) {
    const Buffer scratch(FUSIONKIT_DISPATCH(tile_scratch_bytes, tile_cols));
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t col = tile / left.count() * tile_cols, col_end = std::min(col + tile_cols, c.cols);
      left.multiply(tile % left.count(), panels,
                    static_cast<const char*>(packed) + col / panels.cols * panels.panel_bytes(),
                    slice_cols(c, col, col_end), {offset(options.bias, col), options.accumulate}, is_first, scratch);
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
                    {offset(options.bias, col), options.accumulate}, true, scratch);
    }
  });
}

// All panels of B, some at a time.
void multiply_in_pieces(const LeftTiles& left, const Matrix& b, DType arithmetic, const PanelFormat& panels,
                        const Matrix& c, const ProductOptions& options) {
  const int64_t step = panels_at_a_time(panels) * panels.cols;
  const Buffer packed(std::min(panels.count(b.cols), step / panels.cols) * panels.panel_bytes());
  for (int64_t col = 0; col < b.cols; col += step) {
    const int64_t end = std::min(col + step, b.cols);
    pack_panels(slice_cols(b, col, end), arithmetic, panels, packed.as<void>());
    multiply(left, panels, packed.as<void>(), slice_cols(c, col, end), {offset(options.bias, col), options.accumulate},
             true);
  }
}

// f(begin, end) for equal pieces of `depth` k's, of whole chains.
template <class F>
void for_each_segment(int64_t depth, const F& f) {
  const int64_t step = ceil_div(ceil_div(depth, ceil_div(depth, kSegment)), kSegmentMultiple) * kSegmentMultiple;
  for (int64_t k = 0; k < depth; k += step) f(k, std::min(k + step, depth));
}

// The rows of A that are laid out at a time: whole tiles.
int64_t rows_at_a_time(const PanelFormat& panels) {
  const int64_t tile = FUSIONKIT_DISPATCH(tile_rows, INT32_MAX);
  return std::max<int64_t>(1, kLaidOutBytes / FUSIONKIT_DISPATCH(left_bytes, tile, panels)) * tile;
}

// f(begin, end) for `rows` in groups of at most `most`.
template <class F>
void for_each_group(int64_t rows, int64_t most, const F& f) {
  for (int64_t row = 0; row < rows; row += most) f(row, std::min(row + most, rows));
}

// Where A does not fit at once: some k's of A and of B at a time, whose sums meet in float32.
void multiply_by_segments(const Matrix& a, const Matrix& b, DType arithmetic, const Matrix& c,
                          const ProductOptions& options) {
  const PanelFormat deepest = blocked_panels(arithmetic, kSegment);
  const int64_t step = std::min(panels_at_a_time(deepest), deepest.count(b.cols)) * deepest.cols;
  const bool direct = c.dtype == DType::kFloat32 && options.bias == nullptr;
  const Buffer packed(deepest.count(step) * deepest.panel_bytes());
  const Buffer memory(direct ? 0 : c.rows * step * sizeof(float));
  for (int64_t col = 0; col < b.cols; col += step) {
    const int64_t col_end = std::min(col + step, b.cols);
    const Matrix c_cols = slice_cols(c, col, col_end);
    const Matrix sums = direct ? c_cols : contiguous(memory.as<void>(), DType::kFloat32, c.rows, c_cols.cols);
    for_each_segment(a.cols, [&](int64_t k, int64_t k_end) {
      const PanelFormat panels = blocked_panels(arithmetic, k_end - k);
      pack_panels(slice_rows(slice_cols(b, col, col_end), k, k_end), arithmetic, panels, packed.as<void>());
      for_each_group(a.rows, rows_at_a_time(panels), [&](int64_t row, int64_t end) {
        const LeftTiles left(slice_rows(slice_cols(a, k, k_end), row, end), panels);
        multiply(left, panels, packed.as<void>(), slice_rows(sums, row, end), {nullptr, options.accumulate}, k == 0);
      });
    });
    if (!direct) convert(sums, DType::kFloat32, offset(options.bias, col), c_cols);
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
  if (b.rows > kDeep || a.rows > rows_at_a_time(panels)) {
    return for_each_group(a.rows, kMostRows, [&](int64_t row, int64_t end) {
      multiply_by_segments(slice_rows(a, row, end), b, arithmetic, slice_rows(c, row, end), options);
    });
  }
  const LeftTiles left(a, panels);
  const auto by = left.count() == 1 ? multiply_panel_by_panel : multiply_in_pieces;
  by(left, b, arithmetic, panels, c, options);
}

void blocked_matmul_packed(const Matrix& a, const PanelFormat& panels, const void* packed, const Matrix& c,
                           const ProductOptions& options) {
  for_each_group(a.rows, rows_at_a_time(panels), [&](int64_t row, int64_t end) {
    const LeftTiles left(slice_rows(a, row, end), panels);
    multiply(left, panels, packed, slice_rows(c, row, end), options, true);
  });
}

}  // namespace fusionkit_cpu
