#pragma once

#include <functional>
#include <vector>

#include "kernels/table.h"
#include "matrix.h"

namespace fusionkit_cpu {

// What a rank knows of a token from its own logits: the largest, the sum of exp(logit - largest) over all but the
// label's, and the label's own logit; 0 where another rank has the label.
struct RowStatistics {
  double largest, others, label_logit;
};

// The ranks that hold the columns of one weight between them. Labels count in the whole vocabulary.
struct VocabularyShards {
  int64_t start;       // this rank's first entry
  int64_t vocab_size;  // entries of all ranks
  int64_t widest;      // the most entries of one rank: from it all ranks find the same chunks of tokens
  // This rank's statistics of a chunk of tokens -> those of rank 0, of rank 1, ... Null where one rank has all.
  std::function<std::vector<RowStatistics>(const std::vector<RowStatistics>&)> exchange;
};

}  // namespace fusionkit_cpu

// loss_sum [1] float32 = sum over labels != ignore_index of logsumexp(x W) - (x W)[label]; num_tokens [1] int64.
// labels [tokens] int64 / int32, x [tokens, K], weight [K, V]. The logits are never held whole. When dx or dweight is
// present it receives d(loss_sum): the products are taken while a chunk of logits is at hand.
// With shards the loss is that of all ranks' logits, and dx this rank's part of its sum over ranks.
FUSIONKIT_ENTRY_POINTS(void linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& labels,
                                                 int64_t ignore_index, const Tensor& loss_sum, const Tensor& num_tokens,
                                                 const Tensor& dx, const Tensor& dweight);
                       void linear_cross_entropy_of_shards(const Tensor& x, const Tensor& weight, const Tensor& labels,
                                                           int64_t ignore_index, const VocabularyShards& shards,
                                                           const Tensor& loss_sum, const Tensor& num_tokens,
                                                           const Tensor& dx, const Tensor& dweight);)

FUSIONKIT_KERNELS(fused_linear_cross_entropy,
                  // label: of this row, -1 where another rank has it. The logits are replaced by exp(logit - largest),
                  // but for the label's, which becomes 0.
                  RowStatistics row_statistics(float* logits, int64_t n, int64_t label);

                  // gradient, float32 or bfloat16, = exponentials * factor, and at_label at the label. It may be the
                  // exponentials themselves. Returns what its rounded values add up to.
                  float row_gradient(const float* exponentials, int64_t n, int64_t label, float factor, float at_label,
                                     DType gradient_dtype, void* gradient);

                  // sums[row] -= factor * m[row][col] for the rows [begin, end).
                  void subtract_column(const Matrix& m, int64_t col, float factor, int64_t begin, int64_t end,
                                       float* sums);)
