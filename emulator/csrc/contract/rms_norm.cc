#include "rms_norm.h"

#include <cmath>
#include <vector>

#include "dot.h"

namespace fusionkit_emulator {

void rms_norm(const float* x, const float* gamma, int64_t rows, int64_t hidden, float epsilon, float* y, float* rstd) {
  for (int64_t row = 0; row < rows; ++row, x += hidden, y += hidden) {
    const double squares = sum_over<double>(hidden, [=](int64_t i) { return double(x[i]) * x[i]; });
    const float scale = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(hidden) + epsilon));
    for (int64_t i = 0; i < hidden; ++i) y[i] = x[i] * scale * gamma[i];
    if (rstd != nullptr) rstd[row] = scale;
  }
}

void rms_norm_grad(const float* x, const float* gamma, const float* rstd, const float* dy, int64_t rows, int64_t hidden,
                   float* dx, float* dgamma) {
  std::vector<double> gamma_sums(hidden, 0.0);
  for (int64_t row = 0; row < rows; ++row, x += hidden, dy += hidden, dx += hidden) {
    const float scale = rstd[row];
    const double products =
        sum_over<double>(hidden, [=](int64_t i) { return double(dy[i]) * gamma[i] * x[i] * scale; });
    const float mean = static_cast<float>(products / static_cast<double>(hidden));
    for (int64_t i = 0; i < hidden; ++i) {
      const float normalised = x[i] * scale;
      dx[i] = scale * (dy[i] * gamma[i] - normalised * mean);
      gamma_sums[i] += double(dy[i]) * normalised;
    }
  }
  for (int64_t i = 0; i < hidden; ++i) dgamma[i] = static_cast<float>(gamma_sums[i]);
}

}  // namespace fusionkit_emulator
