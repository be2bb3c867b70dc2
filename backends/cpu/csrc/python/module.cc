// fusionkit_backends.cpu._native: the kernel library over NumPy arrays.
#include "bind.h"

namespace fusionkit_cpu {

PYBIND11_MODULE(_native, module) {
  module.doc() = "Fused LLM ops over NumPy arrays in host memory. Results are new arrays; inputs may be strided views.";
  bind_machine(module);
  bind_elementwise(module);
  bind_attention(module);
  bind_products(module);
  bind_optimizer(module);
}

}  // namespace fusionkit_cpu
