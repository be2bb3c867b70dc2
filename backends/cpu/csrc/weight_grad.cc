#include "weight_grad.h"

#include "check.h"
#include "product.h"

namespace fusionkit_cpu {

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

}  // namespace fusionkit_cpu
