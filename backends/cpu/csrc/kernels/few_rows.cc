// A product with few rows of A reads B once, row by row, as it lies: packing it would cost more than multiplying it.
#include <cstring>

#include "kernels/lanes.h"
#include "kernels/products.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

constexpr int kMaxRows = 8;
// Rows of B taken together: the sums are then read and written once for eight.
constexpr int kDepthStep = 8;

int64_t padded(int64_t cols) { return (cols + kLanes - 1) / kLanes * kLanes; }

// sums += a[:, 0:Depth] b[0:Depth]
template <int Rows, int Depth, class T>
void add_rows(const float* a, int64_t a_stride, const T* b, int64_t b_stride, DType round_to, int64_t cols,
              float* sums) {
  for (int64_t col = 0; col < cols; col += kLanes) {
    Vec sum[Rows];
    for (int row = 0; row < Rows; ++row) sum[row] = load(sums + row * padded(cols) + col);
    for (int k = 0; k < Depth; ++k) {
      // A stream for each k, whose columns here are short: more than the hardware's prefetchers follow.
      __builtin_prefetch(b + (k + Depth) * b_stride + col);
      const Vec b_k = round_vector(round_to, load_lanes(b + k * b_stride + col, 1, cols - col));
      for (int row = 0; row < Rows; ++row) sum[row] = fma(broadcast(a[row * a_stride + k]), b_k, sum[row]);
    }
    for (int row = 0; row < Rows; ++row) store(sums + row * padded(cols) + col, sum[row]);
  }
}

template <int Rows, class T>
void add_product(const float* a, const Matrix& b, const T* rows, DType round_to, float* sums) {
  int64_t k = 0;
  for (; k + kDepthStep <= b.rows; k += kDepthStep)
    add_rows<Rows, kDepthStep>(a + k, b.rows, rows + k * b.row_stride, b.row_stride, round_to, b.cols, sums);
  for (; k < b.rows; ++k)
    add_rows<Rows, 1>(a + k, b.rows, rows + k * b.row_stride, b.row_stride, round_to, b.cols, sums);
}

template <class T>
void add_product(int64_t num_rows, const float* a, const Matrix& b, const T* rows, DType round_to, float* sums) {
  using AddProduct = void (*)(const float*, const Matrix&, const T*, DType, float*);
  constexpr AddProduct kByRows[kMaxRows] = {add_product<1>, add_product<2>, add_product<3>, add_product<4>,
                                            add_product<5>, add_product<6>, add_product<7>, add_product<8>};
  kByRows[num_rows - 1](a, b, rows, round_to, sums);
}

}  // namespace

bool few_rows(const Matrix& a, const Matrix& b) { return a.rows <= kMaxRows && b.col_stride == 1; }

int64_t few_rows_scratch_bytes(int64_t rows, int64_t cols) { return rows * padded(cols) * int64_t{sizeof(float)}; }

void multiply_few_rows(const float* a, const Matrix& b, DType round_to, const Matrix& c, const float* bias,
                       bool accumulate, void* scratch) {
  auto* sums = static_cast<float*>(scratch);
  std::memset(sums, 0, few_rows_scratch_bytes(c.rows, c.cols));
  if (round_to == b.dtype) round_to = DType::kFloat32;
  visit_floating(b.dtype,
                 [&](auto* type) { add_product(c.rows, a, b, static_cast<decltype(type)>(b.data), round_to, sums); });
  for (int64_t row = 0; row < c.rows; ++row) {
    const Matrix to = slice_rows(c, row, row + 1);
    // What is accumulated onto enters as a bias would.
    convert_rows(contiguous(sums + row * padded(c.cols), DType::kFloat32, 1, c.cols), DType::kFloat32,
                 accumulate ? static_cast<const float*>(to.data) : bias, to);
  }
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
