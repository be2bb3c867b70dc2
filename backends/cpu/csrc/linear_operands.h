// What products of activations with a weight take and check alike.
#pragma once

#include <optional>

#include "buffer.h"
#include "matrix.h"
#include "rows.h"

namespace fusionkit_cpu {

// A tensor as rows along its last axis; copied when its outer axes have no common stride.
class RowMatrix {
 public:
  explicit RowMatrix(const Tensor& tensor);
  const Matrix& matrix() const { return matrix_; }

 private:
  void copy_rows(const Rows& rows, DType dtype);

  std::optional<Buffer> copy_;
  Matrix matrix_;
};

// The bias in float32; null when absent.
class FloatBias {
 public:
  explicit FloatBias(const Tensor& bias);
  const float* data() const { return copy_ ? copy_->as<float>() : nullptr; }

 private:
  std::optional<Buffer> copy_;
};

int64_t last_size(const Tensor& tensor);

void require_activations(const char* op, const char* argument, const Tensor& x);
void require_bias(const char* op, const char* argument, const Tensor& bias, const Tensor& x, int64_t out_features);
// `tensor` has x's leading axes and `size` as its last.
void require_leading(const char* op, const char* argument, const Tensor& tensor, const Tensor& x, int64_t size);

}  // namespace fusionkit_cpu
