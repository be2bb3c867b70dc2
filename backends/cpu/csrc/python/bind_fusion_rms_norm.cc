#include <pybind11/stl.h>

#include "arrays.h"
#include "bind.h"
#include "fusion_rms_norm.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

auto rms_norm_arrays(const Array& x, const Array& weight, float epsilon, bool want_rstd) {
  const char* op = "fusion_rms_norm";
  const Array y = empty_like(x);
  const OptionalArray rstd = want_rstd ? OptionalArray(empty({num_rows(x)}, py::dtype::of<float>())) : std::nullopt;
  Call{rms_norm, view(op, "x", x), view(op, "weight", weight), epsilon, result(y), result(rstd)};
  return py::make_tuple(y, rstd);
}

auto rms_norm_grad_arrays(const Array& x, const Array& weight, const Array& rstd, const Array& dy) {
  const char* op = "fusion_rms_norm_grad";
  const Array dx = empty_like(x), dweight = empty_like(weight);
  Call{rms_norm_grad, view(op, "x", x), view(op, "weight", weight), view(op, "rstd", rstd), view(op, "dy", dy),
       result(dx),    result(dweight)};
  return py::make_tuple(dx, dweight);
}

}  // namespace

FUSIONKIT_BIND(fusion_rms_norm) {
  module.def("rms_norm", &rms_norm_arrays, "x"_a, "weight"_a, "epsilon"_a, "want_rstd"_a = false,
             "-> (y, rstd or None)");
  module.def("rms_norm_grad", &rms_norm_grad_arrays, "x"_a, "weight"_a, "rstd"_a, "dy"_a, "-> (dx, dweight)");
}

}  // namespace fusionkit_cpu
