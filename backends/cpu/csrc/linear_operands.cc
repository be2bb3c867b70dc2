#include "linear_operands.h"

#include <algorithm>
#include <string>

#include "check.h"
#include "product.h"

namespace fusionkit_cpu {

RowMatrix::RowMatrix(const Tensor& tensor) {
  const Rows rows = rows_of(tensor);
  if (rows.num_axes <= 1) {
    matrix_ = {rows.data,  tensor.dtype, rows.count, rows.size, rows.num_axes ? rows.strides[0] : rows.size,
               rows.stride};
    return;
  }
  copy_.emplace(rows.count * rows.size * dtype_size(tensor.dtype));
  matrix_ = contiguous(copy_->as<void>(), tensor.dtype, rows.count, rows.size);
  copy_rows(rows, tensor.dtype);
}

// The innermost of the outer axes is copied as a matrix, once for each place on the others.
void RowMatrix::copy_rows(const Rows& rows, DType dtype) {
  const int inner = rows.num_axes - 1;
  int64_t place[kMaxDims] = {};
  for (int64_t row = 0; row < rows.count; row += rows.shape[inner]) {
    int64_t offset = 0;
    for (int axis = 0; axis < inner; ++axis) offset += place[axis] * rows.strides[axis];
    const Matrix from{static_cast<char*>(rows.data) + offset * element_size(dtype),
                      dtype,
                      rows.shape[inner],
                      rows.size,
                      rows.strides[inner],
                      rows.stride};
    convert(from, dtype, nullptr, slice_rows(matrix_, row, row + rows.shape[inner]));
    for (int axis = inner - 1; axis >= 0 && ++place[axis] == rows.shape[axis]; --axis) place[axis] = 0;
  }
}

FloatBias::FloatBias(const Tensor& bias) {
  if (!bias) return;
  copy_.emplace(bias.shape[0] * sizeof(float));
  convert({bias.data, bias.dtype, 1, bias.shape[0], 0, bias.strides[0]}, DType::kFloat32, nullptr,
          contiguous(copy_->as<void>(), DType::kFloat32, 1, bias.shape[0]));
}

int64_t last_size(const Tensor& tensor) { return tensor.shape[tensor.num_dims - 1]; }

void require_activations(const char* op, const char* argument, const Tensor& x) {
  require_floating(op, argument, x);
  require(x.num_dims >= 1, op, argument, "of at least one dimension", x);
}

void require_bias(const char* op, const char* argument, const Tensor& bias, const Tensor& x, int64_t out_features) {
  if (bias) require_input(op, argument, bias, {x.dtype, DType::kFloat32}, {out_features});
}

void require_leading(const char* op, const char* argument, const Tensor& tensor, const Tensor& x, int64_t size) {
  Tensor expected = x;
  expected.shape[x.num_dims - 1] = size;
  require_dtype(op, argument, tensor, {x.dtype});
  const bool equal = tensor.num_dims == x.num_dims && std::equal(x.shape, x.shape + x.num_dims - 1, tensor.shape) &&
                     last_size(tensor) == size;
  if (!equal) fail(op, argument, describe(expected) + " (x's leading axes)", describe(tensor));
}

}  // namespace fusionkit_cpu
