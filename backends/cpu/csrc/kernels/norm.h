#pragma once

#include "kernels/table.h"

FUSIONKIT_FOR_EACH_ISA(
    // Checked arguments, as in fusionkit_cpu.h.
    void rms_norm(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y, const Tensor& rstd);
    void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float epsilon, const Tensor& y,
                      const Tensor& residual_out, const Tensor& rstd);

    // The gradient of both: `normalised` is x, or residual_out. Each output may be absent.
    void rms_norm_grad(const Tensor& normalised, const Tensor& weight, const Tensor& rstd, const Tensor& dy,
                       const Tensor& dresidual_out, const Tensor& dx, const Tensor& dresidual, const Tensor& dweight);)
