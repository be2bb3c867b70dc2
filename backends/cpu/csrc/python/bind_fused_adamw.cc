#include "arrays.h"
#include "bind.h"
#include "fused_adamw.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

void adamw_arrays(const Array& param, const Array& grad, const Array& moment1, const Array& moment2, float grad_scale,
                  float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float root_factor,
                  float epsilon, float decay, float step_size) {
  const char* op = "fused_adamw";
  Call{
      adamw,
      writable_view(op, "param", param),
      view(op, "grad", grad),
      writable_view(op, "moment1", moment1),
      writable_view(op, "moment2", moment2),
      AdamWFactors{grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, root_factor, epsilon, decay, step_size}};
}

}  // namespace

FUSIONKIT_BIND(fused_adamw) {
  module.def("adamw", &adamw_arrays, "param"_a, "grad"_a, "moment1"_a, "moment2"_a, "grad_scale"_a, "beta1"_a,
             "one_minus_beta1"_a, "beta2"_a, "one_minus_beta2"_a, "root_factor"_a, "epsilon"_a, "decay"_a,
             "step_size"_a, "param, moment1 and moment2 are updated in place");
}

}  // namespace fusionkit_cpu
