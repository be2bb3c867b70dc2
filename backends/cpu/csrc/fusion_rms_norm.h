#pragma once

#include "kernels/table.h"

// x [..., H]; weight [H], dtype of x or float32; rstd [rows] float32, optional output saved for the backward.
// dweight has weight's dtype, accumulated in float32.
FUSIONKIT_ENTRY_POINTS(void rms_norm(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y,
                                     const Tensor& rstd);
                       void rms_norm_grad(const Tensor& x, const Tensor& weight, const Tensor& rstd, const Tensor& dy,
                                          const Tensor& dx, const Tensor& dweight);)

FUSIONKIT_KERNELS(norm, void rms_norm(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y,
                                      const Tensor& rstd);

                  // The gradient of add_rms_norm too: `normalised` is x, or residual_out. Each output may be absent.
                  void rms_norm_grad(const Tensor& normalised, const Tensor& weight, const Tensor& rstd,
                                     const Tensor& dy, const Tensor& dresidual_out, const Tensor& dx,
                                     const Tensor& dresidual, const Tensor& dweight);)
