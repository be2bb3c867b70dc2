#include "fused_adamw.h"

#include <type_traits>

#include "kernels/row_access.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kElementsPerShare = 16384;

// Ordinary stores: the lines that are written were just read, so they cost no further read.
template <class T>
void update(float* param, const T* grad, float* moment1, float* moment2, int64_t n, const AdamWFactors& f) {
  for_each_vec(n, [&](int64_t i, auto lanes) {
    const Vec g = lanes.load(grad + i) * broadcast(f.grad_scale);
    const Vec m = fma(broadcast(f.beta1), lanes.load(moment1 + i), broadcast(f.one_minus_beta1) * g);
    const Vec v = fma(broadcast(f.beta2), lanes.load(moment2 + i), broadcast(f.one_minus_beta2) * g * g);
    const Vec denominator = fma(sqrt(v), broadcast(f.root_factor), broadcast(f.epsilon));
    const Vec step = broadcast(f.step_size) / denominator * m;  // step_size * m may lose m's last bits, or all
    lanes.store(moment1 + i, m);
    lanes.store(moment2 + i, v);
    lanes.store(param + i, broadcast(f.decay) * lanes.load(param + i) - step);
  });
}

}  // namespace

void adamw(float* param, const Tensor& grad, float* moment1, float* moment2, int64_t n, const AdamWFactors& factors) {
  visit_floating(grad.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* gradient = static_cast<const T*>(grad.data);
    parallel_for(n, kElementsPerShare, [&](int64_t begin, int64_t end, int) {
      update(param + begin, gradient + begin, moment1 + begin, moment2 + begin, end - begin, factors);
    });
  });
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
