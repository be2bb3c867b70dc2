// fusionkit_backends.cpu._native: the kernel library over NumPy arrays.
#include "bind.h"

namespace fusionkit_cpu {

std::vector<Binder>& binders() {
  static std::vector<Binder> all;
  return all;
}

PYBIND11_MODULE(_native, module) {
  module.doc() = "Fused LLM ops over NumPy arrays in host memory. Results are new arrays; inputs may be strided views.";
  for (Binder bind : binders()) bind(module);
}

}  // namespace fusionkit_cpu
