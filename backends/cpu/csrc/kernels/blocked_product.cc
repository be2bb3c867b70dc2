// The matrix product without a library: A and B in panels, a micro-kernel of kPanelRows x 2 vectors in registers. Sums
// are float32; k is walked in blocks of whole chains.
#include <cstring>

#include "kernels/panels.h"
#include "kernels/products.h"
#include "kernels/register_tile.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

constexpr int kTileRows = 96;  // whole panels
// A panel's block of steps takes 32 KB with AVX-512: the first-level cache.
constexpr int64_t kBlockEntries = 512 * kLanes;
static_assert(kBlockEntries / kWidestPanel % FloatOperand::kLongestChain == 0);

// Of C, `cols` columns from c on. A step of B's panel takes `width` entries.
struct Output {
  float* c;
  int64_t stride, cols;
  Sums sums;
};

// One chain of c[Rows x Vectors] (+)= A panel * B panel, whole vectors alone: a call in here, as a part of a vector is
// with AVX2, would move the sums to the stack and halve the speed.
template <class Operand, int Rows, int Vectors>
[[gnu::always_inline]] inline void micro_chain(const typename Operand::Group* a, const typename Operand::Group* b,
                                               int64_t width, int64_t steps, const Output& out) {
  Vec sums[Rows][Vectors] = {};
  if (out.sums == Sums::kContinue)
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; ++n) sums[i][n] = load(out.c + i * out.stride + n * kLanes);
  const auto right_at = [&](int64_t k, int n) { return Operand::load_groups(b + k * width + n * kLanes); };
  add_products<Operand, Rows, Vectors>({a, 1, kPanelRows}, steps, right_at, sums);
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) {
      float* c = out.c + i * out.stride + n * kLanes;
      store(c, out.sums == Sums::kAdd ? sums[i][n] + load(c) : sums[i][n]);
    }
}

// c[Rows x Vectors] (+)= A panel * B panel over `steps` steps.
template <class Operand, int Rows, int Vectors>
void micro(const typename Operand::Group* a, const typename Operand::Group* b, int64_t width, int64_t steps,
           Output out) {
  for (int64_t k = 0; k < steps; out.sums = Sums::kAdd) {
    const int64_t chain = steps - k < Operand::kLongestChain ? steps - k : Operand::kLongestChain;
    micro_chain<Operand, Rows, Vectors>(a + k * kPanelRows, b + k * width, width, chain, out);
    k += chain;
  }
}

// The same for fewer columns than Vectors hold: in a tile of its own, from and to c.
template <class Operand, int Rows, int Vectors>
void micro_part(const typename Operand::Group* a, const typename Operand::Group* b, int64_t width, int64_t steps,
                const Output& out) {
  constexpr int64_t kCols = Vectors * kLanes;
  float tile[Rows * kCols] = {};
  for (int i = 0; i < Rows && out.sums != Sums::kStart; ++i)
    std::memcpy(tile + i * kCols, out.c + i * out.stride, out.cols * sizeof(float));
  micro<Operand, Rows, Vectors>(a, b, width, steps, {tile, kCols, kCols, out.sums});
  for (int i = 0; i < Rows; ++i) std::memcpy(out.c + i * out.stride, tile + i * kCols, out.cols * sizeof(float));
}

// All columns of a panel, Vectors at a time.
template <class Operand, int Rows, int Vectors>
void micro_panel(const typename Operand::Group* a, const typename Operand::Group* b, int64_t width, int64_t steps,
                 Output out) {
  for (int64_t col = 0; col < width && out.cols > 0; col += Vectors * kLanes) {
    if (out.cols >= Vectors * kLanes)
      micro<Operand, Rows, Vectors>(a, b + col, width, steps, out);
    else
      micro_part<Operand, Rows, Vectors>(a, b + col, width, steps, out);
    out.c += Vectors * kLanes;
    out.cols -= Vectors * kLanes;
  }
}

// Rows that are left over run in kernels of 4 and 1 rows, which have the registers for a wide panel's columns at once;
// the panel's padding is zeros.
template <class Operand>
void micro_rows(const void* a_panel, const void* b_panel, int64_t width, int64_t steps, int64_t rows, Output out) {
  const auto* a = static_cast<const typename Operand::Group*>(a_panel);
  const auto* b = static_cast<const typename Operand::Group*>(b_panel);
  if (rows == kPanelRows) return micro_panel<Operand, kPanelRows, 2>(a, b, width, steps, out);
  const bool wide = kLanes == 16 && width % (4 * kLanes) == 0;
  const auto four = wide ? micro_panel < Operand, 4, kLanes == 16 ? 4 : 2 > : micro_panel<Operand, 4, 2>;
  const auto one = wide ? micro_panel < Operand, 1, kLanes == 16 ? 4 : 2 > : micro_panel<Operand, 1, 2>;
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4, out.c += 4 * out.stride) four(a + row, b, width, steps, out);
  for (; row < rows; ++row, out.c += out.stride) one(a + row, b, width, steps, out);
}

using MicroKernel = void (*)(const void* a, const void* b, int64_t width, int64_t steps, int64_t rows, Output out);

MicroKernel micro_kernel(DType compute) {
#ifdef __AVX512BF16__
  if (in_pairs(compute)) return micro_rows<BFloat16Operand>;
#endif
  (void)compute;
  return micro_rows<FloatOperand>;
}

// out = A block (already in panels) * the same depth of every panel of B.
void multiply_block(MicroKernel kernel, const char* a_panels, int64_t a_panel_bytes, const char* b_panels,
                    const PanelFormat& format, int64_t steps, int64_t rows, const Output& out) {
  for (int64_t col = 0; col < out.cols; col += format.cols, b_panels += format.panel_bytes())
    for (int64_t row = 0; row < rows; row += kPanelRows)
      kernel(a_panels + row / kPanelRows * a_panel_bytes, b_panels, format.cols, steps,
             rows - row < kPanelRows ? rows - row : kPanelRows,
             {out.c + row * out.stride + col, out.stride, out.cols - col, out.sums});
}

// Rows of A in panels of kPanelRows.
void pack_rows(const Matrix& a, DType compute, uint32_t* panels) {
  const Matrix columns = transposed(a);
  const int64_t num_steps = in_pairs(compute) ? (columns.rows + 1) / 2 : columns.rows;
  visit_entries(a.dtype, a.dtype, compute, [&](auto entries) {
    for (int64_t col = 0; col < columns.cols; col += kPanelRows, panels += num_steps * kPanelRows)
      for (int64_t step = 0; step < num_steps; step += kLanes)
        pack_strip<kPanelRows>(entries, columns, step * entries.kStep, col, num_steps - step,
                               panels + step * kPanelRows);
  });
}

// The k's that a product walks at a time.
int64_t block_depth(const PanelFormat& format) {
  return kBlockEntries / format.cols * (in_pairs(format.compute) ? 2 : 1);
}

// Where the block that begins at k lies among the blocks of `rows` packed rows.
int64_t left_offset(int64_t rows, int64_t k, const PanelFormat& format) {
  return round_up(rows, kPanelRows) * k * element_size(format.compute);
}

}  // namespace

DType compute_dtype(DType storage) {
#ifdef __AVX512BF16__
  if (storage == DType::kBFloat16) return DType::kBFloat16;
#endif
  (void)storage;
  return DType::kFloat32;
}

// With AVX2 oneDNN takes 0.8 to 1 of this product's time from 128 rows on, but up to twice with a pack and fewer rows
// (Zen 3). Its bits then depend on a call's rows and strides, and one row of a pack rounds four times as much as MKL's.
bool prefers_onednn() { return kLanes == 16; }

int64_t tile_rows(int64_t rows) {
  const int64_t tiles = rows < kTileRows ? 1 : (rows + kTileRows - 1) / kTileRows;
  return round_up((rows + tiles - 1) / tiles, kPanelRows);
}

int64_t tile_scratch_bytes(int64_t cols) { return kTileRows * cols * int64_t{sizeof(float)}; }

int64_t num_blocks(const PanelFormat& format) {
  const int64_t block = block_depth(format);
  return (format.depth + block - 1) / block;
}

int64_t left_bytes(int64_t rows, const PanelFormat& format) { return left_offset(rows, format.depth, format); }

void pack_left(const Matrix& a, const PanelFormat& format, int64_t begin, int64_t end, void* left) {
  const int64_t block = block_depth(format);
  for (int64_t k = begin * block; k < end * block && k < a.cols; k += block)
    pack_rows(slice_cols(a, k, a.cols - k < block ? a.cols : k + block), format.compute,
              reinterpret_cast<uint32_t*>(static_cast<char*>(left) + left_offset(a.rows, k, format)));
}

void multiply_tile(const void* left, const PanelFormat& format, const void* panels, int64_t depth, const Matrix& c,
                   const float* bias, Sums sums, void* scratch) {
  const MicroKernel kernel = micro_kernel(format.compute);
  const int64_t block = block_depth(format);
  const bool direct = c.dtype == DType::kFloat32 && bias == nullptr;
  // A chain goes on where it was; a new one is added.
  const Sums continued = in_pairs(format.compute) ? Sums::kContinue : Sums::kAdd;
  Output out = {direct ? static_cast<float*>(c.data) : static_cast<float*>(scratch), direct ? c.row_stride : c.cols,
                c.cols, sums == Sums::kContinue ? continued : sums};
  for (int64_t k = 0; k < depth; k += block) {
    const int64_t padded = padded_depth(format.compute, depth - k < block ? depth - k : block);
    multiply_block(kernel, static_cast<const char*>(left) + left_offset(c.rows, k, format),
                   padded * kPanelRows * element_size(format.compute),
                   static_cast<const char*>(panels) + k * format.cols * element_size(format.compute), format,
                   in_pairs(format.compute) ? padded / 2 : padded, c.rows, out);
    if (out.sums == Sums::kStart) out.sums = continued;
  }
  if (direct) return;
  convert_rows(contiguous(out.c, DType::kFloat32, c.rows, c.cols), DType::kFloat32, bias, c);
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
