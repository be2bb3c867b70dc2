#include "fused_linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
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

// Logits held at a time: 1024 rows of 32000. Longer chunks pack the weight and add to its gradient fewer times.
constexpr int64_t kChunkBytes = int64_t{128} << 20;
// Chunks have whole multiples of rows, the last ones zeros, so that few sizes of products are ever prepared.
constexpr int64_t kRowMultiple = 64;
// dx is summed over slices of the vocabulary, which stay in the third-level cache.
constexpr int64_t kVocabSlice = 4096;

struct Token {
  int64_t row;
  int64_t label;  // among this rank's columns; -1 where another rank has it
};

int64_t label_at(const Tensor& labels, int64_t row) {
  const int64_t offset = row * labels.strides[0];
  if (labels.dtype == DType::kInt32) return static_cast<const int32_t*>(labels.data)[offset];
  return static_cast<const int64_t*>(labels.data)[offset];
}

// The tokens that count; the others are never multiplied.
std::vector<Token> labelled_tokens(const Tensor& labels, int64_t ignore_index, int64_t num_columns,
                                   const VocabularyShards& shards) {
  std::vector<Token> tokens;
  for (int64_t row = 0; row < labels.shape[0]; ++row) {
    const int64_t label = label_at(labels, row);
    if (label == ignore_index) continue;
    if (label < 0 || label >= shards.vocab_size)
      fail(kOp, "labels",
           "in [0, " + std::to_string(shards.vocab_size) + ") or ignore_index (" + std::to_string(ignore_index) + ")",
           std::to_string(label) + " in row " + std::to_string(row));
    const int64_t column = label - shards.start;
    tokens.push_back({row, column >= 0 && column < num_columns ? column : -1});
  }
  return tokens;
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

// dweight; in float32, whatever its dtype, while several chunks are added.
class WeightGradient {
 public:
  WeightGradient(const Tensor& dweight, int64_t num_chunks) : present_(dweight) {
    if (!present_) return;
    result_ = sums_ = matrix_of(dweight);
    if (dweight.dtype == DType::kFloat32 || num_chunks == 1) return;
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

void set_zero(const Matrix& m) {
  for (int64_t row = 0; row < m.rows; ++row) std::memset(element(m, row, 0), 0, m.cols * element_size(m.dtype));
}

// rows[i] = x[tokens[i].row], and zeros after `count` of them.
void gather(const Matrix& x, const Token* tokens, int64_t count, const Matrix& rows) {
  parallel_for(count, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      FUSIONKIT_DISPATCH(convert_rows, row_of(x, tokens[i].row), x.dtype, nullptr, row_of(rows, i));
  });
  set_zero(slice_rows(rows, count, rows.rows));
}

// x[tokens[i].row] = rows[i]
void scatter(const Matrix& rows, const Token* tokens, int64_t count, const Matrix& x) {
  parallel_for(count, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      FUSIONKIT_DISPATCH(convert_rows, row_of(rows, i), x.dtype, nullptr, row_of(x, tokens[i].row));
  });
}

// Of a token, from the statistics of all ranks.
struct RowLoss {
  double loss, largest, total, others;
};

// `ranks` statistics, `stride` apart; added in the order of ranks, so that all ranks find the same.
RowLoss row_loss(const RowStatistics* first, int64_t ranks, int64_t stride) {
  double largest = first->largest, others = 0, label_logit = 0;
  for (int64_t rank = 1; rank < ranks; ++rank) largest = std::max(largest, first[rank * stride].largest);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const RowStatistics& each = first[rank * stride];
    others += each.others * std::exp(each.largest - largest);
    label_logit += each.label_logit;
  }
  label_logit -= largest;
  const double label_term = std::exp(label_logit);
  return {std::log1p(others + (label_term - 1.0)) - label_logit, largest, others + label_term, others};
}

// A chunk's logits, which become exponentials and then the gradient, where one is wanted.
struct Rows {
  const Matrix& logits;
  const Token* tokens;
  int64_t count;
  const Matrix& gradient;
  bool wants_gradient;
  float* gradient_sums;

  RowStatistics statistics(int64_t i) const {
    return FUSIONKIT_DISPATCH(row_statistics, static_cast<float*>(element(logits, i, 0)), logits.cols, tokens[i].label);
  }
  void differentiate(int64_t i, const RowStatistics& own, const RowLoss& row) const {
    if (!wants_gradient) return;
    const auto factor = static_cast<float>(std::exp(own.largest - row.largest) / row.total);
    gradient_sums[i] = FUSIONKIT_DISPATCH(row_gradient, static_cast<float*>(element(logits, i, 0)), logits.cols,
                                          tokens[i].label, factor, static_cast<float>(-row.others / row.total),
                                          gradient.dtype, element(gradient, i, 0));
  }
};

// One pass: a row is still in the caches when its gradient is taken.
void losses_alone(const Rows& rows, std::vector<double>& losses) {
  parallel_for(rows.count, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const RowStatistics own = rows.statistics(i);
      const RowLoss row = row_loss(&own, 1, 1);
      rows.differentiate(i, own, row);
      losses[i] = row.loss;
    }
  });
}

void losses_over_ranks(const Rows& rows, const VocabularyShards& shards, std::vector<double>& losses) {
  std::vector<RowStatistics> own(rows.count);
  parallel_for(rows.count, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) own[i] = rows.statistics(i);
  });
  const std::vector<RowStatistics> all = shards.exchange(own);
  const int64_t ranks = static_cast<int64_t>(all.size()) / rows.count;
  parallel_for(rows.count, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const RowLoss row = row_loss(&all[i], ranks, rows.count);
      rows.differentiate(i, own[i], row);
      losses[i] = row.loss;
    }
  });
}

// The sum of the rows' losses, in row order. Their gradients, if wanted, take the place of the logits, and zeros that
// of the rows after them.
double row_losses(const Rows& rows, const VocabularyShards& shards) {
  std::vector<double> losses(rows.count);
  if (shards.exchange)
    losses_over_ranks(rows, shards, losses);
  else
    losses_alone(rows, losses);
  if (rows.wants_gradient) set_zero(slice_rows(rows.gradient, rows.count, rows.gradient.rows));
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

// sums = gradient W^T
void input_gradient(const Matrix& gradient, const Matrix& weight, DType arithmetic, const Matrix& sums) {
  for (int64_t begin = 0; begin < weight.cols; begin += kVocabSlice) {
    const int64_t end = std::min(begin + kVocabSlice, weight.cols);
    product(slice_cols(gradient, begin, end), transposed(slice_cols(weight, begin, end)), arithmetic, sums,
            {nullptr, begin > 0});
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// sums -= gradient_sums W[:, label]^T. softmax - onehot adds up to 0, its rounded values do not: what all columns of W
// have in common would be multiplied by what they add up to. One pass over W, in blocks that stay in the caches while
// all tokens pick their columns. Not for shards: rounding their parts of dx to be summed costs as much.
void subtract_common_part(const Matrix& weight, const Token* tokens, int64_t count, const float* gradient_sums,
                          const Matrix& sums) {
  constexpr int64_t kBlockRows = 16;
  parallel_for(ceil_div(weight.rows, kBlockRows), 1, [&](int64_t first, int64_t last, int) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlockRows, end = std::min(begin + kBlockRows, weight.rows);
      for (int64_t i = 0; i < count; ++i)
        FUSIONKIT_DISPATCH(subtract_column, weight, tokens[i].label, gradient_sums[i], begin, end,
                           static_cast<float*>(element(sums, i, 0)));
    }
  });
}

double chunked_loss(const Tensor& x, const Tensor& weight, const std::vector<Token>& tokens, const Tensor& dx,
                    const Tensor& dweight, const VocabularyShards& shards) {
  const int64_t num_tokens = tokens.size(), hidden_size = x.shape[1], vocab_size = weight.shape[1];
  const int64_t fitting = kChunkBytes / (shards.widest * static_cast<int64_t>(sizeof(float)) * kRowMultiple);
  const int64_t num_chunks = ceil_div(num_tokens, std::max<int64_t>(fitting, 1) * kRowMultiple);
  const int64_t chunk_rows = ceil_div(ceil_div(num_tokens, num_chunks), kRowMultiple) * kRowMultiple;
  const DType compute = compute_dtype(x.dtype);
  const Matrix weight_matrix = matrix_of(weight);
  WeightGradient weight_gradient(dweight, num_chunks);
  const Buffer x_memory(chunk_rows * hidden_size * element_size(x.dtype));
  const Buffer dx_memory(dx ? chunk_rows * hidden_size * sizeof(float) : 0);
  const Buffer logits_memory(chunk_rows * vocab_size * sizeof(float));
  std::vector<float> gradient_sums(chunk_rows);
  double loss = 0;
  for (int64_t begin = 0; begin < num_tokens; begin += chunk_rows) {
    const Token* chunk = tokens.data() + begin;
    const int64_t count = std::min(chunk_rows, num_tokens - begin);
    const int64_t num_rows = ceil_div(count, kRowMultiple) * kRowMultiple;
    const Matrix rows = contiguous(x_memory.as<void>(), x.dtype, num_rows, hidden_size);
    const Matrix logits = contiguous(logits_memory.as<void>(), DType::kFloat32, num_rows, vocab_size);
    // A row's gradient begins where its logits did, and is no longer than they were.
    const int64_t gradient_stride = vocab_size * static_cast<int64_t>(sizeof(float)) / element_size(compute);
    const Matrix gradient{logits.data, compute, num_rows, vocab_size, gradient_stride, 1};
    gather(matrix_of(x), chunk, count, rows);
    product(rows, weight_matrix, x.dtype, logits);
    loss += row_losses({logits, chunk, count, gradient, dx || dweight, gradient_sums.data()}, shards);
    weight_gradient.add(rows, gradient);
    if (!dx) continue;
    const Matrix sums = contiguous(dx_memory.as<void>(), DType::kFloat32, num_rows, hidden_size);
    input_gradient(gradient, weight_matrix, x.dtype, sums);
    if (!shards.exchange) subtract_common_part(weight_matrix, chunk, count, gradient_sums.data(), sums);
    scatter(sums, chunk, count, matrix_of(dx));
  }
  weight_gradient.finish();
  return loss;
}

}  // namespace

void linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& labels, int64_t ignore_index,
                          const Tensor& loss_sum, const Tensor& num_tokens, const Tensor& dx, const Tensor& dweight) {
  const VocabularyShards alone{0, weight.shape[1], weight.shape[1], nullptr};
  linear_cross_entropy_of_shards(x, weight, labels, ignore_index, alone, loss_sum, num_tokens, dx, dweight);
}

void linear_cross_entropy_of_shards(const Tensor& x, const Tensor& weight, const Tensor& labels, int64_t ignore_index,
                                    const VocabularyShards& shards, const Tensor& loss_sum, const Tensor& num_tokens,
                                    const Tensor& dx, const Tensor& dweight) {
  check_arguments(x, weight, labels, loss_sum, num_tokens, dx, dweight);
  const std::vector<Token> tokens = labelled_tokens(labels, ignore_index, weight.shape[1], shards);
  if (dx) set_zero(dx);
  if (dweight && tokens.empty()) set_zero(dweight);
  const double loss = tokens.empty() ? 0.0 : chunked_loss(x, weight, tokens, dx, dweight, shards);
  *static_cast<float*>(loss_sum.data) = static_cast<float>(loss);
  *static_cast<int64_t*>(num_tokens.data) = static_cast<int64_t>(tokens.size());
}

}  // namespace fusionkit_cpu
