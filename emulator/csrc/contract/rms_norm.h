// What rms_norm_npu and rms_norm_gcu compute, on float32 rows in host memory.
#pragma once

#include <cstdint>

namespace fusionkit_emulator {

// y = x * rstd * gamma, rstd = 1 / sqrt(mean(x^2) + epsilon). x, y: [rows, hidden]; gamma: [hidden]; rstd: [rows], or
// null.
void rms_norm(const float* x, const float* gamma, int64_t rows, int64_t hidden, float epsilon, float* y, float* rstd);

// dx: [rows, hidden]; dgamma: [hidden], float32 on the device too, whatever gamma's dtype.
void rms_norm_grad(const float* x, const float* gamma, const float* rstd, const float* dy, int64_t rows, int64_t hidden,
                   float* dx, float* dgamma);

}  // namespace fusionkit_emulator
