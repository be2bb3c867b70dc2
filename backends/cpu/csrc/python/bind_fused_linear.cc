#include <pybind11/stl.h>

#include "arrays.h"
#include "bind.h"
#include "fused_linear.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

Array linear_array(const Array& x, const Array& weight, const OptionalArray& bias, bool batch_invariant) {
  const Array y = empty_with_last(x, axis_size(weight, 1));
  Call{linear,
       view("fused_linear", "x", x),
       view("fused_linear", "weight", weight),
       view("fused_linear", "bias", bias),
       result(y),
       batch_invariant};
  return y;
}

auto linear_grad_arrays(const Array& x, const Array& weight, const Array& dy, const OptionalArray& bias) {
  const char* op = "fused_linear_grad";
  const Array dx = empty_like(x), dweight = empty_like(weight);
  const OptionalArray dbias = bias ? OptionalArray(empty_like(*bias)) : std::nullopt;
  Call{linear_grad,     view(op, "x", x), view(op, "weight", weight), view(op, "dy", dy), result(dx),
       result(dweight), result(dbias)};
  return py::make_tuple(dx, dweight, dbias);
}

}  // namespace

FUSIONKIT_BIND(fused_linear) {
  module.def("linear", &linear_array, "x"_a, "weight"_a, "bias"_a = py::none(), "batch_invariant"_a = false, "-> y");
  module.def("linear_grad", &linear_grad_arrays, "x"_a, "weight"_a, "dy"_a, "bias"_a = py::none(),
             "-> (dx, dweight, dbias or None); of bias only shape and dtype are read");
}

}  // namespace fusionkit_cpu
