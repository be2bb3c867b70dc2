// A rectangle of elements in host memory, the operand of every product. Strides count elements.
// The functions have internal linkage: kernels compiled for several instruction sets include this header.
#pragma once

#include "fusionkit_cpu.h"

namespace fusionkit_cpu {

struct Matrix {
  void* data;
  DType dtype;
  int64_t rows, cols;
  int64_t row_stride, col_stride;
};

static inline Matrix matrix_of(const Tensor& tensor) {
  return {tensor.data, tensor.dtype, tensor.shape[0], tensor.shape[1], tensor.strides[0], tensor.strides[1]};
}

static inline int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

static inline void* element(const Matrix& m, int64_t row, int64_t col) {
  return static_cast<char*>(m.data) + (row * m.row_stride + col * m.col_stride) * element_size(m.dtype);
}

static inline Matrix transposed(const Matrix& m) {
  return {m.data, m.dtype, m.cols, m.rows, m.col_stride, m.row_stride};
}

static inline Matrix slice_rows(const Matrix& m, int64_t begin, int64_t end) {
  return {element(m, begin, 0), m.dtype, end - begin, m.cols, m.row_stride, m.col_stride};
}

static inline Matrix slice_cols(const Matrix& m, int64_t begin, int64_t end) {
  return {element(m, 0, begin), m.dtype, m.rows, end - begin, m.row_stride, m.col_stride};
}

static inline Matrix contiguous(void* data, DType dtype, int64_t rows, int64_t cols) {
  return {data, dtype, rows, cols, cols, 1};
}

}  // namespace fusionkit_cpu
