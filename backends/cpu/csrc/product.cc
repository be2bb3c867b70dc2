#include "product.h"

#include <algorithm>
#include <string>

#include "blocked_matmul.h"
#include "kernels/products.h"
#include "onednn.h"
#include "onednn_matmul.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace {

// Converted operands and results are made in pieces of this size: below glibc's limit for memory that is returned to
// the system at once (fresh pages cost more than the conversion), and near a third-level cache.
constexpr int64_t kPieceBytes = int64_t{16} << 20;
constexpr int64_t kPieceMultiple = 64;

// How many rows (or columns) of `length` float32 elements make a piece.
int64_t piece(int64_t length) {
  const int64_t fitting = kPieceBytes / (std::max<int64_t>(length, 1) * 4);
  return std::max(fitting / kPieceMultiple, int64_t{1}) * kPieceMultiple;
}

void fill(const Matrix& c, const float* bias) {
  const Buffer zeros(c.cols * sizeof(float));
  std::fill_n(zeros.as<float>(), c.cols, 0.0f);
  convert({zeros.as<void>(), DType::kFloat32, c.rows, c.cols, 0, 1}, DType::kFloat32, bias, c);
}

// The product of operands that oneDNN takes as they are; c is converted when it is not float32 or theirs.
void multiply(const Matrix& a, const Matrix& b, const Matrix& c, const ProductOptions& options, void* scratch) {
  if (c.dtype == DType::kFloat32 || c.dtype == a.dtype) return onednn_matmul(a, b, c, options.bias, options.accumulate);
  const Matrix sums = contiguous(scratch, DType::kFloat32, c.rows, c.cols);
  onednn_matmul(a, b, sums, options.bias, false);
  convert(sums, DType::kFloat32, nullptr, c);
}

void product_by_onednn(const Matrix& a, const Matrix& b, DType arithmetic, const Matrix& c,
                       const ProductOptions& options) {
  const DType compute = compute_dtype(arithmetic);
  const bool a_ready = a.dtype == compute && onednn_takes(a);
  const bool b_ready = b.dtype == compute && arithmetic == compute && onednn_takes(b);
  const bool c_ready = c.dtype == DType::kFloat32 || c.dtype == compute;
  const int64_t cols_step = b_ready && c_ready ? b.cols : std::min(b.cols, piece(b.rows));
  const int64_t rows_step = a_ready && c_ready ? a.rows : std::min(a.rows, piece(std::max(a.cols, cols_step)));
  const Buffer a_memory(a_ready ? 0 : rows_step * a.cols * element_size(compute));
  const Buffer b_memory(b_ready ? 0 : cols_step * b.rows * element_size(compute));
  const Buffer c_memory(c_ready ? 0 : rows_step * cols_step * sizeof(float));
  for (int64_t col = 0; col < b.cols; col += cols_step) {
    const int64_t col_end = std::min(col + cols_step, b.cols);
    Matrix b_piece = slice_cols(b, col, col_end);
    if (!b_ready) b_piece = converted(b_piece, arithmetic, compute, b_memory.as<void>());
    const ProductOptions piece_options{options.bias == nullptr ? nullptr : options.bias + col, options.accumulate};
    for (int64_t row = 0; row < a.rows; row += rows_step) {
      const int64_t row_end = std::min(row + rows_step, a.rows);
      Matrix a_piece = slice_rows(a, row, row_end);
      if (!a_ready) a_piece = converted(a_piece, DType::kFloat32, compute, a_memory.as<void>());
      multiply(a_piece, b_piece, slice_cols(slice_rows(c, row, row_end), col, col_end), piece_options,
               c_memory.as<void>());
    }
  }
}

}  // namespace

bool uses_onednn() {
  static const std::string best = available_isas().front();
  return onednn::api() != nullptr && best == isa();
}

DType compute_dtype(DType arithmetic) { return FUSIONKIT_DISPATCH(compute_dtype, arithmetic); }

bool load_onednn(const std::string& path) { return onednn::load(path); }

const char* matmul_library() { return uses_onednn() ? "onednn" : "blocked"; }

void product(const Matrix& a, const Matrix& b, DType arithmetic, const Matrix& c, const ProductOptions& options) {
  if (c.rows == 0 || c.cols == 0) return;
  if (a.cols == 0) return options.accumulate ? void() : fill(c, options.bias);
  if (uses_onednn() && !FUSIONKIT_DISPATCH(few_rows, a, b)) return product_by_onednn(a, b, arithmetic, c, options);
  blocked_matmul(a, b, arithmetic, c, options);
}

void convert(const Matrix& from, DType round_to, const float* bias, const Matrix& to) {
  constexpr int64_t kGrain = 1 << 14;  // elements worth a thread
  parallel_for(from.rows, kGrain / std::max<int64_t>(from.cols, 1) + 1, [&](int64_t begin, int64_t end, int) {
    FUSIONKIT_DISPATCH(convert_rows, slice_rows(from, begin, end), round_to, bias, slice_rows(to, begin, end));
  });
}

Matrix converted(const Matrix& m, DType round_to, DType dtype, void* memory) {
  if (m.row_stride == 1 && m.col_stride != 1) return transposed(converted(transposed(m), round_to, dtype, memory));
  const Matrix to = contiguous(memory, dtype, m.rows, m.cols);
  convert(m, round_to, nullptr, to);
  return to;
}

}  // namespace fusionkit_cpu
