#include <algorithm>
#include <optional>

#include "check.h"
#include "kernels/products.h"
#include "packed_weight.h"
#include "parallel.h"
#include "rows.h"

namespace fusionkit_cpu {
namespace {

int64_t last_size(const Tensor& tensor) { return tensor.shape[tensor.num_dims - 1]; }

// A tensor as rows along its last axis; copied when its outer axes have no common stride.
class RowMatrix {
 public:
  explicit RowMatrix(const Tensor& tensor) {
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
  const Matrix& matrix() const { return matrix_; }

 private:
  // The innermost of the outer axes is copied as a matrix, once for each place on the others.
  void copy_rows(const Rows& rows, DType dtype) {
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

  std::optional<Buffer> copy_;
  Matrix matrix_;
};

Matrix matrix_of(const Tensor& tensor) {
  return {tensor.data, tensor.dtype, tensor.shape[0], tensor.shape[1], tensor.strides[0], tensor.strides[1]};
}

// The bias in float32; null when absent.
class FloatBias {
 public:
  explicit FloatBias(const Tensor& bias) {
    if (!bias) return;
    copy_.emplace(bias.shape[0] * sizeof(float));
    convert({bias.data, bias.dtype, 1, bias.shape[0], 0, bias.strides[0]}, DType::kFloat32, nullptr,
            contiguous(copy_->as<void>(), DType::kFloat32, 1, bias.shape[0]));
  }
  const float* data() const { return copy_ ? copy_->as<float>() : nullptr; }

 private:
  std::optional<Buffer> copy_;
};

void require_activations(const char* op, const char* argument, const Tensor& x) {
  require_floating(op, argument, x);
  require(x.num_dims >= 1, op, argument, "of at least one dimension", x);
}

void require_weight(const char* op, const Tensor& x, const Tensor& weight) {
  require_num_dims(op, "weight", weight, 2);
  require_input(op, "weight", weight, {x.dtype, DType::kFloat32}, {last_size(x), weight.shape[1]});
}

// `tensor` has x's leading axes and `size` as its last.
void require_leading(const char* op, const char* argument, const Tensor& tensor, const Tensor& x, int64_t size) {
  Tensor expected = x;
  expected.shape[x.num_dims - 1] = size;
  require_dtype(op, argument, tensor, {x.dtype});
  const bool equal = tensor.num_dims == x.num_dims && std::equal(x.shape, x.shape + x.num_dims - 1, tensor.shape) &&
                     last_size(tensor) == size;
  if (!equal) fail(op, argument, describe(expected) + " (x's leading axes)", describe(tensor));
}

void require_bias(const char* op, const char* argument, const Tensor& bias, const Tensor& x, int64_t out_features) {
  if (bias) require_input(op, argument, bias, {x.dtype, DType::kFloat32}, {out_features});
}

void sum_rows(const Matrix& dy, const Tensor& dbias) {
  constexpr int64_t kStrip = 64;  // columns; every strip is summed in row order, whichever thread takes it
  const Buffer sums(dy.cols * sizeof(float));
  parallel_for((dy.cols + kStrip - 1) / kStrip, 1, [&](int64_t begin, int64_t end, int) {
    const Matrix strip = slice_cols(dy, begin * kStrip, std::min(end * kStrip, dy.cols));
    FUSIONKIT_DISPATCH(sum_columns, strip, sums.as<float>() + begin * kStrip);
  });
  convert(contiguous(sums.as<void>(), DType::kFloat32, 1, dy.cols), DType::kFloat32, nullptr,
          contiguous(dbias.data, dbias.dtype, 1, dy.cols));
}

}  // namespace

void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
  constexpr const char* kOp = "fused_linear";
  require_activations(kOp, "x", x);
  require_weight(kOp, x, weight);
  const int64_t out_features = weight.shape[1];
  require_bias(kOp, "bias", bias, x, out_features);
  require_leading(kOp, "y", y, x, out_features);
  require(is_contiguous(y), kOp, "y", "contiguous", y);
  const RowMatrix rows(x);
  const FloatBias float_bias(bias);
  product(rows.matrix(), matrix_of(weight), x.dtype, contiguous(y.data, y.dtype, rows.matrix().rows, out_features),
          {float_bias.data()});
}

void linear_grad(const Tensor& x, const Tensor& weight, const Tensor& dy, const Tensor& dx, const Tensor& dweight,
                 const Tensor& dbias) {
  constexpr const char* kOp = "fused_linear_grad";
  require_activations(kOp, "x", x);
  require_weight(kOp, x, weight);
  const int64_t in_features = weight.shape[0], out_features = weight.shape[1];
  require_leading(kOp, "dy", dy, x, out_features);
  if (dx) require_output_like(kOp, "dx", dx, "x", x);
  if (dweight) require_output_like(kOp, "dweight", dweight, "weight", weight);
  if (dbias) {
    require_bias(kOp, "dbias", dbias, x, out_features);
    require(is_contiguous(dbias), kOp, "dbias", "contiguous", dbias);
  }
  const RowMatrix gradient(dy);
  if (dx)
    product(gradient.matrix(), transposed(matrix_of(weight)), x.dtype,
            contiguous(dx.data, dx.dtype, gradient.matrix().rows, in_features));
  if (dweight) {
    const RowMatrix rows(x);
    product(transposed(rows.matrix()), gradient.matrix(), x.dtype,
            contiguous(dweight.data, dweight.dtype, in_features, out_features));
  }
  if (dbias) sum_rows(gradient.matrix(), dbias);
}

void weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dweight, bool accumulate) {
  constexpr const char* kOp = "weight_grad";
  require_num_dims(kOp, "x", x, 2);
  require_floating(kOp, "x", x);
  require_num_dims(kOp, "dy", dy, 2);
  require_input(kOp, "dy", dy, {x.dtype}, {x.shape[0], dy.shape[1]});
  require_input(kOp, "dweight", dweight, {x.dtype, DType::kFloat32}, {x.shape[1], dy.shape[1]});
  require(!accumulate || dweight.dtype == DType::kFloat32, kOp, "dweight", "float32 to add to it", dweight);
  product(transposed(matrix_of(x)), matrix_of(dy), x.dtype, matrix_of(dweight), {nullptr, accumulate});
}

void cast(const Tensor& from, const Tensor& to) {
  require_num_dims("cast", "from", from, 2);
  require_floating("cast", "from", from);
  require_floating("cast", "to", to);
  require_input("cast", "to", to, {to.dtype}, {from.shape[0], from.shape[1]});
  convert(matrix_of(from), to.dtype, nullptr, matrix_of(to));
}

size_t packed_weight_size(const Tensor& weight, DType dtype) {
  require_num_dims("packed_weight_size", "weight", weight, 2);
  require_floating("packed_weight_size", "weight", weight);
  if (!is_floating(dtype)) fail("packed_weight_size", "dtype", "float32, bfloat16 or float16", dtype_name(dtype));
  return packed_size(matrix_of(weight), dtype);
}

void pack_weight(const Tensor& weight, DType dtype, void* packed) {
  constexpr const char* kOp = "pack_weight";
  require_num_dims(kOp, "weight", weight, 2);
  require_floating(kOp, "weight", weight);
  if (!is_floating(dtype)) fail(kOp, "dtype", "float32, bfloat16 or float16", dtype_name(dtype));
  if (packed == nullptr) fail(kOp, "packed", "packed_weight_size() bytes", "null");
  pack(matrix_of(weight), dtype, packed);
}

void linear_packed(const Tensor& x, const void* packed, size_t packed_size, int64_t in_features, int64_t out_features,
                   const Tensor& bias, const Tensor& y) {
  constexpr const char* kOp = "fused_linear_packed";
  require_activations(kOp, "x", x);
  if (last_size(x) != in_features)
    fail(kOp, "x", "of " + std::to_string(in_features) + " features on its last axis", describe(x));
  require_packed(kOp, packed, packed_size, x.dtype, in_features, out_features);
  require_bias(kOp, "bias", bias, x, out_features);
  require_leading(kOp, "y", y, x, out_features);
  require(is_contiguous(y), kOp, "y", "contiguous", y);
  const RowMatrix rows(x);
  const FloatBias float_bias(bias);
  product_packed(rows.matrix(), packed, contiguous(y.data, y.dtype, rows.matrix().rows, out_features),
                 float_bias.data());
}

}  // namespace fusionkit_cpu
