#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/products.h"
#include "parallel.h"
#include "product.h"

namespace fusionkit_cpu {
namespace {

constexpr const char* kOp = "fused_linear_cross_entropy";

// Logits held at a time. Longer chunks read the weight and its gradient fewer times.
constexpr int64_t kChunkBytes = int64_t{64} << 20;
constexpr int64_t kMinChunkRows = 64;

struct Token {
  int64_t row;
  int64_t label;
};

int64_t label_at(const Tensor& labels, int64_t row) {
  const int64_t offset = row * labels.strides[0];
  if (labels.dtype == DType::kInt32) return static_cast<const int32_t*>(labels.data)[offset];
  return static_cast<const int64_t*>(labels.data)[offset];
}

// The tokens that count; the others are never multiplied.
std::vector<Token> labelled_tokens(const Tensor& labels, int64_t ignore_index, int64_t vocab_size) {
  std::vector<Token> tokens;
  for (int64_t row = 0; row < labels.shape[0]; ++row) {
    const int64_t label = label_at(labels, row);
    if (label == ignore_index) continue;
    if (label < 0 || label >= vocab_size)
      fail(kOp, "labels",
           "in [0, " + std::to_string(vocab_size) + ") or ignore_index (" + std::to_string(ignore_index) + ")",
           std::to_string(label) + " in row " + std::to_string(row));
    tokens.push_back({row, label});
  }
  return tokens;
}

Matrix matrix_of(const Tensor& tensor) {
  return {tensor.data, tensor.dtype, tensor.shape[0], tensor.shape[1], tensor.strides[0], tensor.strides[1]};
}

void check_arguments(const Tensor& x, const Tensor& weight, const Tensor& labels, const Tensor& loss_sum,
                     const Tensor& num_tokens, const Tensor& dx, const Tensor& dweight) {
  require_floating(kOp, "x", x);
  require_num_dims(kOp, "x", x, 2);
  require_num_dims(kOp, "weight", weight, 2);
  require_input(kOp, "weight", weight, {x.dtype, DType::kFloat32}, {x.shape[1], weight.shape[1]});
  require_input(kOp, "labels", labels, {DType::kInt64, DType::kInt32}, {x.shape[0]});
  require_output(kOp, "loss_sum", loss_sum, DType::kFloat32, {1});
  require_output(kOp, "num_tokens", num_tokens, DType::kInt64, {1});
  if (dx) require_output_like(kOp, "dx", dx, "x", x);
  if (dweight) require_output_like(kOp, "dweight", dweight, "weight", weight);
}

void set_zero(const Tensor& tensor) { std::memset(tensor.data, 0, num_elements(tensor) * dtype_size(tensor.dtype)); }

Matrix row_of(const Matrix& m, int64_t row) { return slice_rows(m, row, row + 1); }

// The weight as the products take it: rounded once for all chunks where oneDNN would round at every product. The own
// loop rounds while it packs.
class RoundedWeight {
 public:
  RoundedWeight(const Tensor& weight, DType dtype) : matrix_(matrix_of(weight)), arithmetic_(dtype) {
    const DType compute = compute_dtype(dtype);
    if (!uses_onednn() || (weight.dtype == compute && dtype == compute)) return;
    memory_.emplace(num_elements(weight) * element_size(compute));
    matrix_ = converted(matrix_, dtype, compute, memory_->as<void>());
    arithmetic_ = compute;
  }
  const Matrix& matrix() const { return matrix_; }
  DType arithmetic() const { return arithmetic_; }

 private:
  std::optional<Buffer> memory_;
  Matrix matrix_;
  DType arithmetic_;
};

// dweight in float32, whatever its dtype, while chunks are added.
class WeightGradient {
 public:
  explicit WeightGradient(const Tensor& dweight) : present_(dweight) {
    if (!present_) return;
    result_ = sums_ = matrix_of(dweight);
    if (dweight.dtype == DType::kFloat32) return;
    memory_.emplace(num_elements(dweight) * sizeof(float));
    sums_ = contiguous(memory_->as<void>(), DType::kFloat32, result_.rows, result_.cols);
  }
  void add(const Matrix& rows, const Matrix& gradient) {
    if (!present_) return;
    product(transposed(rows), gradient, compute_dtype(rows.dtype), sums_, {nullptr, started_});
    started_ = true;
  }
  void finish() const {
    if (memory_) convert(sums_, DType::kFloat32, nullptr, result_);
  }

 private:
  bool present_;
  bool started_ = false;
  std::optional<Buffer> memory_;
  Matrix sums_{}, result_{};
};

// rows[i] = x[tokens[i].row]
void gather(const Matrix& x, const Token* tokens, const Matrix& rows) {
  parallel_for(rows.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      FUSIONKIT_DISPATCH(convert_rows, row_of(x, tokens[i].row), x.dtype, nullptr, row_of(rows, i));
  });
}

// x[tokens[i].row] = rows[i]
void scatter(const Matrix& rows, const Token* tokens, const Matrix& x) {
  parallel_for(rows.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      FUSIONKIT_DISPATCH(convert_rows, row_of(rows, i), x.dtype, nullptr, row_of(x, tokens[i].row));
  });
}

// The sum of the rows' losses, in row order. gradient may be the logits; its data is null when not wanted.
double row_losses(const Matrix& logits, const Token* tokens, const Matrix& gradient) {
  std::vector<double> losses(logits.rows);
  parallel_for(logits.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      losses[i] = FUSIONKIT_DISPATCH(cross_entropy_row, static_cast<float*>(element(logits, i, 0)), logits.cols,
                                     tokens[i].label, gradient.dtype,
                                     gradient.data == nullptr ? nullptr : element(gradient, i, 0));
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

double chunked_loss(const Tensor& x, const Tensor& weight, const std::vector<Token>& tokens, const Tensor& dx,
                    const Tensor& dweight) {
  const int64_t num_tokens = tokens.size(), hidden_size = x.shape[1], vocab_size = weight.shape[1];
  const int64_t fitting = kChunkBytes / (vocab_size * static_cast<int64_t>(sizeof(float)));
  const int64_t chunk_rows = std::min(std::max(fitting, kMinChunkRows), num_tokens);
  const DType compute = compute_dtype(x.dtype);
  const bool wants_gradient = dx || dweight;
  const bool in_place = compute == DType::kFloat32;
  const RoundedWeight rounded(weight, x.dtype);
  WeightGradient weight_gradient(dweight);
  const Buffer x_memory(chunk_rows * hidden_size * element_size(x.dtype));
  const Buffer dx_memory(dx ? chunk_rows * hidden_size * element_size(x.dtype) : 0);
  const Buffer logits_memory(chunk_rows * vocab_size * sizeof(float));
  const Buffer gradient_memory(wants_gradient && !in_place ? chunk_rows * vocab_size * element_size(compute) : 0);
  void* gradient_data = in_place ? logits_memory.as<void>() : gradient_memory.as<void>();
  double loss = 0;
  for (int64_t begin = 0; begin < num_tokens; begin += chunk_rows) {
    const Token* chunk = tokens.data() + begin;
    const int64_t count = std::min(chunk_rows, num_tokens - begin);
    const Matrix rows = contiguous(x_memory.as<void>(), x.dtype, count, hidden_size);
    const Matrix logits = contiguous(logits_memory.as<void>(), DType::kFloat32, count, vocab_size);
    const Matrix gradient = contiguous(wants_gradient ? gradient_data : nullptr, compute, count, vocab_size);
    gather(matrix_of(x), chunk, rows);
    product(rows, rounded.matrix(), rounded.arithmetic(), logits);
    loss += row_losses(logits, chunk, gradient);
    weight_gradient.add(rows, gradient);
    if (!dx) continue;
    const Matrix dx_rows = contiguous(dx_memory.as<void>(), x.dtype, count, hidden_size);
    product(gradient, transposed(rounded.matrix()), rounded.arithmetic(), dx_rows);
    scatter(dx_rows, chunk, matrix_of(dx));
  }
  weight_gradient.finish();
  return loss;
}

}  // namespace

void linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& labels, int64_t ignore_index,
                          const Tensor& loss_sum, const Tensor& num_tokens, const Tensor& dx, const Tensor& dweight) {
  check_arguments(x, weight, labels, loss_sum, num_tokens, dx, dweight);
  const std::vector<Token> tokens = labelled_tokens(labels, ignore_index, weight.shape[1]);
  if (dx) set_zero(dx);
  if (dweight) set_zero(dweight);
  const double loss = tokens.empty() ? 0.0 : chunked_loss(x, weight, tokens, dx, dweight);
  *static_cast<float*>(loss_sum.data) = static_cast<float>(loss);
  *static_cast<int64_t*>(num_tokens.data) = static_cast<int64_t>(tokens.size());
}

}  // namespace fusionkit_cpu
