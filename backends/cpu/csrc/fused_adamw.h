#pragma once

#include "kernels/table.h"

// In place, contiguous float32 param, moment1 and moment2; grad [like param] floating. With g = grad_scale * grad:
//   moment1 = beta1 * moment1 + one_minus_beta1 * g;  moment2 = beta2 * moment2 + one_minus_beta2 * g^2
//   param = decay * param - step_size * moment1 / (sqrt(moment2) * root_factor + epsilon)

namespace fusionkit_cpu {

struct AdamWFactors {
  float grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, root_factor, epsilon, decay, step_size;
};

}  // namespace fusionkit_cpu

FUSIONKIT_ENTRY_POINTS(void adamw(const Tensor& param, const Tensor& grad, const Tensor& moment1, const Tensor& moment2,
                                  const AdamWFactors& factors);)

FUSIONKIT_KERNELS(fused_adamw,
                  // Contiguous tensors of n elements; grad of any floating dtype.
                  void adamw(float* param, const Tensor& grad, float* moment1, float* moment2, int64_t n,
                             const AdamWFactors& factors);)
