#include "arrays.h"
#include "bind.h"
#include "scale.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

void scale_array(const Array& x, const Array& factor) {
  Call{static_cast<void (*)(const Tensor&, const Tensor&)>(scale), writable_view("scale", "x", x),
       view("scale", "factor", factor)};
}

}  // namespace

FUSIONKIT_BIND(scale) { module.def("scale", &scale_array, "x"_a, "factor"_a, "x *= factor[0], in place"); }

}  // namespace fusionkit_cpu
