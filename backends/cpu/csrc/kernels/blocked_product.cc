// The matrix product without a library: B in panels, A repacked block by block, a micro-kernel of
// kPanelRows x 2 vectors in registers. Sums are float32; k is walked in blocks, in one order.
#include "kernels/panels.h"
#include "kernels/products.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

constexpr int kTileRows = 8 * kPanelRows;
// A panel of B's block (k x columns) takes 32 KB with AVX-512: the first-level cache.
constexpr int kDepthBlock = 256;
constexpr int kDepthBlockPairs = 512;

// One step of the sums: a float32 value, or a pair of bfloat16, of A against two vectors of B.
struct FloatStep {
  using Element = float;
  static Vec load_b(const Element* b) { return load(b); }
  static Vec multiply(const Element* a, Vec b, Vec sum) { return fma(broadcast(*a), b, sum); }
};

#ifdef __AVX512BF16__
struct PairStep {
  using Element = uint32_t;
  static Vec load_b(const Element* b) { return reinterpret_cast<Vec>(_mm512_loadu_si512(b)); }
  static Vec multiply(const Element* a, Vec b, Vec sum) {
    const __m512i pair = _mm512_set1_epi32(static_cast<int>(*a));
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(pair),
                                                  reinterpret_cast<__m512bh>(b)));
  }
};
#endif

void finish(Vec sum, float* c, int64_t n, bool add) {
  if (n <= 0) return;
  if (n >= kLanes)
    store(c, add ? sum + load(c) : sum);
  else
    store_partial(c, add ? sum + load_partial(c, static_cast<int>(n)) : sum, static_cast<int>(n));
}

// c[Rows x cols] (+)= A panel * B panel over `steps` steps.
template <class Step, int Rows>
void micro(const void* a_panel, const void* b_panel, int64_t steps, float* c, int64_t c_stride, int64_t cols,
           bool add) {
  const auto* a = static_cast<const typename Step::Element*>(a_panel);
  const auto* b = static_cast<const typename Step::Element*>(b_panel);
  Vec sums[Rows][2] = {};
  for (int64_t k = 0; k < steps; ++k, a += kPanelRows, b += kPanelCols) {
    const Vec b0 = Step::load_b(b), b1 = Step::load_b(b + kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) {
      sums[i][0] = Step::multiply(a + i, b0, sums[i][0]);
      sums[i][1] = Step::multiply(a + i, b1, sums[i][1]);
    }
  }
  for (int i = 0; i < Rows; ++i, c += c_stride) {
    finish(sums[i][0], c, cols, add);
    finish(sums[i][1], c + kLanes, cols - kLanes, add);
  }
}

// Rows that are left over run in kernels of 1, 4 and kPanelRows rows; the panel's padding is zeros.
template <class Step>
void micro_rows(const void* a, const void* b, int64_t steps, int64_t rows, float* c, int64_t c_stride, int64_t cols,
                bool add) {
  const auto* a_element = static_cast<const typename Step::Element*>(a);
  if (rows == kPanelRows) return micro<Step, kPanelRows>(a, b, steps, c, c_stride, cols, add);
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) micro<Step, 4>(a_element + row, b, steps, c + row * c_stride, c_stride, cols, add);
  for (; row < rows; ++row) micro<Step, 1>(a_element + row, b, steps, c + row * c_stride, c_stride, cols, add);
}

using MicroKernel = void (*)(const void* a, const void* b, int64_t steps, int64_t rows, float* c, int64_t c_stride,
                             int64_t cols, bool add);

MicroKernel micro_kernel(DType compute) {
#ifdef __AVX512BF16__
  if (in_pairs(compute)) return micro_rows<PairStep>;
#endif
  (void)compute;
  return micro_rows<FloatStep>;
}

// out = A block (already in panels) * the same depth of every panel of B.
void multiply_block(MicroKernel kernel, const char* a_panels, int64_t a_panel_bytes, const char* b_panels,
                    int64_t b_panel_bytes, int64_t steps, float* out, int64_t out_stride, int64_t rows, int64_t cols,
                    bool add) {
  for (int64_t col = 0; col < cols; col += kPanelCols)
    for (int64_t row = 0; row < rows; row += kPanelRows)
      kernel(a_panels + row / kPanelRows * a_panel_bytes, b_panels + col / kPanelCols * b_panel_bytes, steps,
             rows - row < kPanelRows ? rows - row : kPanelRows, out + row * out_stride + col, out_stride, cols - col,
             add);
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

constexpr int64_t kBlockBytes = int64_t{kTileRows} * kDepthBlock * sizeof(float);

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

void multiply_tile(const Matrix& a, DType compute, const void* panels, const Matrix& c, const float* bias,
                   bool accumulate, void* scratch) {
  const MicroKernel kernel = micro_kernel(compute);
  const int64_t depth_block = in_pairs(compute) ? kDepthBlockPairs : kDepthBlock;
  const int64_t step = in_pairs(compute) ? 2 : 1;
  const int64_t b_bytes = own_panels(compute, a.cols).panel_bytes();
  const bool direct = c.dtype == DType::kFloat32 && bias == nullptr;
  float* out =
      direct ? static_cast<float*>(c.data) : reinterpret_cast<float*>(static_cast<char*>(scratch) + kBlockBytes);
  const int64_t out_stride = direct ? c.row_stride : c.cols;
  for (int64_t k = 0; k < a.cols; k += depth_block) {
    const int64_t depth = a.cols - k < depth_block ? a.cols - k : depth_block;
    const int64_t a_bytes = padded_depth(compute, depth) * kPanelRows * element_size(compute);
    pack_rows(slice_cols(a, k, k + depth), compute, static_cast<uint32_t*>(scratch));
    multiply_block(kernel, static_cast<const char*>(scratch), a_bytes,
                   static_cast<const char*>(panels) + k * kPanelCols * element_size(compute), b_bytes,
                   (depth + step - 1) / step, out, out_stride, a.rows, c.cols, accumulate || k > 0);
  }
  if (direct) return;
  convert_rows(contiguous(out, DType::kFloat32, c.rows, c.cols), DType::kFloat32, bias, c);
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
