#include "onednn_product.h"

#include <memory>
#include <stdexcept>

#include "buffer.h"
#include "check.h"
#include "matrix.h"
#include "onednn.h"
#include "onednn_layout.h"
#include "onednn_matmul.h"

namespace fusionkit_cpu {

std::function<void(const Tensor& x, const Tensor& y)> onednn_product(const Tensor& weight) {
  constexpr const char* kOp = "onednn_product";
  if (onednn::api() == nullptr) throw std::runtime_error("onednn_product: no oneDNN is loaded. Install Paddle");
  require_num_dims(kOp, "weight", weight, 2);
  require_dtype(kOp, "weight", weight, {DType::kFloat32, DType::kBFloat16});
  const Matrix b = matrix_of(weight);
  const auto layout = onednn_weight_layout(b.dtype, b.rows, b.cols);
  const auto packed = std::make_shared<const Buffer>(layout->num_bytes);
  onednn_pack(b, b.dtype, *layout, b.dtype, packed->as<void>());
  return [=](const Tensor& x, const Tensor& y) {
    require_num_dims(kOp, "x", x, 2);
    require_input(kOp, "x", x, {b.dtype}, {x.shape[0], b.rows});
    require(is_contiguous(x), kOp, "x", "contiguous", x);
    require_output(kOp, "y", y, b.dtype, {x.shape[0], b.cols});
    onednn_matmul_packed(matrix_of(x), layout->blob, packed->as<void>(), matrix_of(y), nullptr, false);
  };
}

}  // namespace fusionkit_cpu
