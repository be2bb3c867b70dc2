#include "product.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "blocked_matmul.h"
#include "kernels/products.h"
#include "onednn.h"
#include "onednn_layout.h"
#include "onednn_matmul.h"
#include "panels.h"
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

// Up to so many rows the own loop is faster than oneDNN, for a B that is stored row by row.
constexpr int64_t kFewRows = 8;

// From this many rows on, packing B inside the call costs less than it gains: 2 to 3 ms for 5120 x 5120 in bfloat16,
// against a seventh of the product. A B that must be rounded is packed while it is: 6 ms instead of 9 for 16 rows.
constexpr int64_t kPackingRows = 256;
// A packed piece of B stays in the third-level cache until it is multiplied.
constexpr int64_t kPackedBytes = int64_t{8} << 20;
constexpr int64_t kPackedMultiple = 64;  // columns: oneDNN's panels

// B, or some of its columns, as oneDNN takes it.
class Operand {
 public:
  Operand(const Matrix& b, bool ready, bool packs, DType arithmetic, DType compute)
      : matrix_(b), layout_(packs ? onednn_weight_layout(compute, b.rows, b.cols) : nullptr) {
    if (ready && !packs) return;
    memory_.emplace(packs ? layout_->num_bytes : b.rows * b.cols * element_size(compute));
    if (packs)
      onednn_pack(b, arithmetic, *layout_, compute, memory_->as<void>());
    else
      matrix_ = converted(b, arithmetic, compute, memory_->as<void>());
  }

  void multiply(const Matrix& a, const Matrix& c, const ProductOptions& options) const {
    if (layout_)
      onednn_matmul_packed(a, layout_->blob, memory_->as<void>(), c, options.bias, options.accumulate);
    else
      onednn_matmul(a, matrix_, c, options.bias, options.accumulate);
  }

 private:
  Matrix matrix_;
  std::shared_ptr<const WeightLayout> layout_;
  std::optional<Buffer> memory_;
};

// The k's of a piece. oneDNN adds up to 1024 one after another, whose rounding in float32 is twice that of other
// libraries. Pieces of 256 have theirs and cost up to a tenth of the time at 16 to 128 rows, and nothing above.
constexpr int64_t kLongestChain = 256;
constexpr int64_t kChainMultiple = 16;

int64_t num_chains(int64_t depth, DType compute) {
  return compute == DType::kFloat32 ? (depth + kLongestChain - 1) / kLongestChain : 1;
}

// f(begin, end) for equal pieces of k. bfloat16 has one: the rounding of its operands is 2^-9.
template <class F>
void for_each_chain(int64_t depth, DType compute, const F& f) {
  const int64_t count = num_chains(depth, compute);
  const auto bound = [&](int64_t i) {
    return i == count ? depth : depth * i / count / kChainMultiple * kChainMultiple;
  };
  for (int64_t i = 0; i < count; ++i) f(bound(i), bound(i + 1));
}

// Columns whose sums stay in the second-level cache, where each chain is added to them; at least eight panels.
int64_t summed_piece(int64_t rows) {
  constexpr int64_t kSumsBytes = int64_t{1} << 20, kFewestPanels = 8;
  const int64_t panels = kSumsBytes / int64_t{sizeof(float)} / std::max<int64_t>(rows, 1) / kPackedMultiple;
  return std::max(panels, kFewestPanels) * kPackedMultiple;
}

// Equal pieces of B's columns that fit the cache once packed.
int64_t packed_piece(int64_t depth, int64_t cols, DType compute) {
  const int64_t column_bytes = depth * element_size(compute);
  const int64_t pieces = std::max<int64_t>(1, (cols * column_bytes + kPackedBytes - 1) / kPackedBytes);
  return ((cols + pieces - 1) / pieces + kPackedMultiple - 1) / kPackedMultiple * kPackedMultiple;
}

void product_by_onednn(const Matrix& a, const Matrix& b, DType arithmetic, const Matrix& c,
                       const ProductOptions& options) {
  const DType compute = compute_dtype(arithmetic);
  const bool b_ready = b.dtype == compute && arithmetic == compute && onednn_takes(b);
  const bool packs = !b_ready || a.rows >= kPackingRows;
  // A transposed operand costs a packed product 6 to 9%, its copy one.
  const bool a_ready = a.dtype == compute && onednn_takes(a) && (!packs || a.col_stride == 1);
  const bool c_ready = c.dtype == DType::kFloat32 || c.dtype == compute;
  int64_t cols_step = packs                ? std::min(b.cols, packed_piece(b.rows, b.cols, compute))
                      : b_ready && c_ready ? b.cols
                                           : std::min(b.cols, piece(b.rows));
  if (packs && num_chains(b.rows, compute) > 1) cols_step = std::min(cols_step, summed_piece(a.rows));
  const int64_t rows_step = a_ready && c_ready ? a.rows : std::min(a.rows, piece(std::max(a.cols, cols_step)));
  const Buffer a_memory(a_ready ? 0 : rows_step * a.cols * element_size(compute));
  const Buffer c_memory(c_ready ? 0 : rows_step * cols_step * sizeof(float));
  for (int64_t row = 0; row < a.rows; row += rows_step) {
    const int64_t row_end = std::min(row + rows_step, a.rows);
    Matrix a_rows = slice_rows(a, row, row_end);
    if (!a_ready) {
      const Matrix from = a_rows;
      a_rows = contiguous(a_memory.as<void>(), compute, from.rows, from.cols);
      make_row_major(from, a_rows);
    }
    for (int64_t col = 0; col < b.cols; col += cols_step) {
      const int64_t col_end = std::min(col + cols_step, b.cols);
      const Matrix c_piece = slice_cols(slice_rows(c, row, row_end), col, col_end);
      const Matrix sums =
          c_ready ? c_piece : contiguous(c_memory.as<void>(), DType::kFloat32, c_piece.rows, c_piece.cols);
      const float* bias = options.bias == nullptr ? nullptr : options.bias + col;
      for_each_chain(b.rows, compute, [&](int64_t k, int64_t k_end) {
        const Operand piece(slice_rows(slice_cols(b, col, col_end), k, k_end), b_ready, packs, arithmetic, compute);
        const bool is_first = k == 0;
        piece.multiply(slice_cols(a_rows, k, k_end), sums,
                       {is_first ? bias : nullptr, options.accumulate || !is_first});
      });
      if (!c_ready) convert(sums, DType::kFloat32, nullptr, c_piece);
    }
  }
}

}  // namespace

bool uses_onednn() {
  static const std::string best = available_isas().front();
  return onednn::api() != nullptr && best == isa() && FUSIONKIT_DISPATCH(prefers_onednn);
}

DType compute_dtype(DType arithmetic) { return FUSIONKIT_DISPATCH(compute_dtype, arithmetic); }

bool load_onednn(const std::string& path) { return onednn::load(path); }

bool has_onednn() { return onednn::api() != nullptr; }

const char* matmul_library() { return uses_onednn() ? "onednn" : "blocked"; }

void product(const Matrix& a, const Matrix& b, DType arithmetic, const Matrix& c, const ProductOptions& options) {
  if (c.rows == 0 || c.cols == 0) return;
  if (a.cols == 0) return options.accumulate ? void() : fill(c, options.bias);
  const bool few_rows = a.rows <= kFewRows && b.col_stride == 1;
  if (uses_onednn() && !few_rows && !options.batch_invariant) return product_by_onednn(a, b, arithmetic, c, options);
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
