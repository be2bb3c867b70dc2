#include "scale.h"

#include "check.h"

namespace fusionkit_cpu {

void scale(const Tensor& x, const Tensor& factor) {
  require_floating("scale", "x", x);
  require(is_contiguous(x), "scale", "x", "contiguous", x);
  require_input("scale", "factor", factor, {DType::kFloat32}, {1});
  const float value = *static_cast<const float*>(factor.data);
  if (value != 1.0f) FUSIONKIT_DISPATCH(scale, x, value, x);
}

void scale(const Tensor& x, const Tensor& factor, const Tensor& y) {
  require_floating("scale", "x", x);
  require(is_contiguous(x), "scale", "x", "contiguous", x);
  require_output_like("scale", "y", y, "x", x);
  require_input("scale", "factor", factor, {DType::kFloat32}, {1});
  FUSIONKIT_DISPATCH(scale, x, *static_cast<const float*>(factor.data), y);
}

}  // namespace fusionkit_cpu
