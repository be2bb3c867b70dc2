#include "arrays.h"
#include "bind.h"
#include "weight_grad.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

void weight_grad_array(const Array& x, const Array& dy, const Array& dweight, bool accumulate) {
  const char* op = "weight_grad";
  Call{weight_grad, view(op, "x", x), view(op, "dy", dy), writable_view(op, "dweight", dweight), accumulate};
}

}  // namespace

FUSIONKIT_BIND(weight_grad) {
  module.def("weight_grad", &weight_grad_array, "x"_a, "dy"_a, py::arg("dweight").noconvert(), "accumulate"_a = false,
             "dweight = x^T dy, or += in float32");
}

}  // namespace fusionkit_cpu
