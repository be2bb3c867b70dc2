// The matrix product without a library: B in panels, A repacked block by block, a micro-kernel of
// kPanelRows x 2 vectors in registers. Sums are float32; k is walked in blocks of whole chains.
#include "kernels/panels.h"
#include "kernels/products.h"
#include "kernels/register_tile.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

constexpr int kTileRows = 8 * kPanelRows;
// A panel's block of steps takes 32 KB with AVX-512: the first-level cache.
constexpr int64_t kBlockEntries = 512 * kLanes;
static_assert(kBlockEntries / (4 * kLanes) % FloatOperand::kLongestChain == 0);

// What a micro-kernel does with the sums that are in c.
enum class Sums { kStart, kContinue, kAddAtTheEnd };

inline Vec load_sum(const float* c, int64_t n) {
  if (n <= 0) return Vec{};
  return n >= kLanes ? load(c) : load_partial(c, n);
}

inline void store_sum(float* c, int64_t n, Vec sum) {
  if (n <= 0) return;
  if (n >= kLanes)
    store(c, sum);
  else
    store_partial(c, sum, n);
}

// Of C, `cols` columns from c on. A step of B's panel takes `width` entries.
struct Output {
  float* c;
  int64_t stride, cols;
  Sums sums;
};

// One chain of c[Rows x Vectors] (+)= A panel * B panel.
template <class Operand, int Rows, int Vectors>
[[gnu::always_inline]] inline void micro_chain(const typename Operand::Group* a, const typename Operand::Group* b,
                                               int64_t width, int64_t steps, const Output& out) {
  Vec sums[Rows][Vectors] = {};
  if (out.sums == Sums::kContinue)
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; ++n)
        sums[i][n] = load_sum(out.c + i * out.stride + n * kLanes, out.cols - n * kLanes);
  const auto right_at = [&](int64_t k, int n) { return Operand::load_groups(b + k * width + n * kLanes); };
  add_products<Operand, Rows, Vectors>({a, 1, kPanelRows}, steps, right_at, sums);
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) {
      float* c = out.c + i * out.stride + n * kLanes;
      const int64_t left = out.cols - n * kLanes;
      if (out.sums == Sums::kAddAtTheEnd) sums[i][n] += load_sum(c, left);
      store_sum(c, left, sums[i][n]);
    }
}

// c[Rows x Vectors] (+)= A panel * B panel over `steps` steps.
template <class Operand, int Rows, int Vectors>
void micro(const typename Operand::Group* a, const typename Operand::Group* b, int64_t width, int64_t steps,
           Output out) {
  for (int64_t k = 0; k < steps; out.sums = Sums::kAddAtTheEnd) {
    const int64_t chain = steps - k < Operand::kLongestChain ? steps - k : Operand::kLongestChain;
    micro_chain<Operand, Rows, Vectors>(a + k * kPanelRows, b + k * width, width, chain, out);
    k += chain;
  }
}

// All columns of a panel, Vectors at a time.
template <class Operand, int Rows, int Vectors>
void micro_panel(const typename Operand::Group* a, const typename Operand::Group* b, int64_t width, int64_t steps,
                 Output out) {
  for (int64_t col = 0; col < width && out.cols > 0; col += Vectors * kLanes) {
    micro<Operand, Rows, Vectors>(a, b + col, width, steps, out);
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

// Of A, in panels: the deepest block is that of the narrowest panel of B.
constexpr int64_t kBlockBytes = int64_t{kTileRows} * (kBlockEntries / kPanelCols) * sizeof(uint32_t);

}  // namespace

DType compute_dtype(DType storage) {
#ifdef __AVX512BF16__
  if (storage == DType::kBFloat16) return DType::kBFloat16;
#endif
  (void)storage;
  return DType::kFloat32;
}

int64_t tile_rows() { return kTileRows; }

int64_t tile_scratch_bytes(int64_t cols) { return kBlockBytes + kTileRows * cols * int64_t{sizeof(float)}; }

void multiply_tile(const Matrix& a, const PanelFormat& format, const void* panels, const Matrix& c, const float* bias,
                   bool accumulate, void* scratch) {
  const MicroKernel kernel = micro_kernel(format.compute);
  const int64_t step = in_pairs(format.compute) ? 2 : 1;
  const int64_t depth_block = kBlockEntries / format.cols * step;
  const bool direct = c.dtype == DType::kFloat32 && bias == nullptr;
  Output out = {
      direct ? static_cast<float*>(c.data) : reinterpret_cast<float*>(static_cast<char*>(scratch) + kBlockBytes),
      direct ? c.row_stride : c.cols, c.cols, accumulate ? Sums::kAddAtTheEnd : Sums::kStart};
  for (int64_t k = 0; k < a.cols; k += depth_block) {
    const int64_t depth = a.cols - k < depth_block ? a.cols - k : depth_block;
    const int64_t a_bytes = padded_depth(format.compute, depth) * kPanelRows * element_size(format.compute);
    pack_rows(slice_cols(a, k, k + depth), format.compute, static_cast<uint32_t*>(scratch));
    multiply_block(kernel, static_cast<const char*>(scratch), a_bytes,
                   static_cast<const char*>(panels) + k * format.cols * element_size(format.compute), format,
                   (depth + step - 1) / step, a.rows, out);
    if (!accumulate) out.sums = in_pairs(format.compute) ? Sums::kContinue : Sums::kAddAtTheEnd;
  }
  if (direct) return;
  convert_rows(contiguous(out.c, DType::kFloat32, c.rows, c.cols), DType::kFloat32, bias, c);
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
