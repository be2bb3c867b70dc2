#pragma once

#include "kernels/table.h"

// residual_out = round(x + residual) in residual's dtype; y = rms_norm(residual_out) in x's dtype.
#define FUSIONKIT_ADD_RMS_NORM                                                                                     \
  void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float epsilon, const Tensor& y, \
                    const Tensor& residual_out, const Tensor& rstd);

FUSIONKIT_ENTRY_POINTS(FUSIONKIT_ADD_RMS_NORM
                       // dresidual_out may be absent (zero). dx and dresidual hold the same gradient, each in its own
                       // dtype; both optional.
                       void add_rms_norm_grad(const Tensor& residual_out, const Tensor& weight, const Tensor& rstd,
                                              const Tensor& dy, const Tensor& dresidual_out, const Tensor& dx,
                                              const Tensor& dresidual, const Tensor& dweight);)

FUSIONKIT_KERNELS(norm, FUSIONKIT_ADD_RMS_NORM)
