#include "arrays.h"
#include "bind.h"
#include "swiglu.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

Array swiglu_array(const Array& gate, const Array& up) {
  const Array y = empty_like(gate);
  Call{swiglu, view("swiglu", "gate", gate), view("swiglu", "up", up), result(y)};
  return y;
}

auto swiglu_grad_arrays(const Array& gate, const Array& up, const Array& dy) {
  const char* op = "swiglu_grad";
  const Array dgate = empty_like(gate), dup = empty_like(up);
  Call{swiglu_grad, view(op, "gate", gate), view(op, "up", up), view(op, "dy", dy), result(dgate), result(dup)};
  return py::make_tuple(dgate, dup);
}

}  // namespace

FUSIONKIT_BIND(swiglu) {
  module.def("swiglu", &swiglu_array, "gate"_a, "up"_a, "-> y");
  module.def("swiglu_grad", &swiglu_grad_arrays, "gate"_a, "up"_a, "dy"_a, "-> (dgate, dup)");
}

}  // namespace fusionkit_cpu
