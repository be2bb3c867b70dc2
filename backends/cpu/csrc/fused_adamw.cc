#include "fused_adamw.h"

#include "check.h"

namespace fusionkit_cpu {

void adamw(const Tensor& param, const Tensor& grad, const Tensor& moment1, const Tensor& moment2,
           const AdamWFactors& factors) {
  constexpr const char* kOp = "fused_adamw";
  require_dtype(kOp, "param", param, {DType::kFloat32});
  require_output_like(kOp, "param", param, "param", param);
  require_floating(kOp, "grad", grad);
  require_same_shape(kOp, "grad", grad, "param", param);
  require(is_contiguous(grad), kOp, "grad", "contiguous", grad);
  require_output_like(kOp, "moment1", moment1, "param", param);
  require_output_like(kOp, "moment2", moment2, "param", param);
  FUSIONKIT_DISPATCH(adamw, static_cast<float*>(param.data), grad, static_cast<float*>(moment1.data),
                     static_cast<float*>(moment2.data), num_elements(param), factors);
}

}  // namespace fusionkit_cpu
