#include <pybind11/stl.h>

#include "arrays.h"
#include "bind.h"
#include "fusion_add_rms_norm.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

auto add_rms_norm_arrays(const Array& x, const Array& residual, const Array& weight, float epsilon, bool want_rstd) {
  const char* op = "fusion_add_rms_norm";
  const Array y = empty_like(x), residual_out = empty_like(residual);
  const OptionalArray rstd = want_rstd ? OptionalArray(empty({num_rows(x)}, py::dtype::of<float>())) : std::nullopt;
  Call{add_rms_norm, view(op, "x", x), view(op, "residual", residual), view(op, "weight", weight),
       epsilon,      result(y),        result(residual_out),           result(rstd)};
  return py::make_tuple(y, residual_out, rstd);
}

auto add_rms_norm_grad_arrays(const Array& residual_out, const Array& weight, const Array& rstd, const Array& dy,
                              const OptionalArray& dresidual_out) {
  const char* op = "fusion_add_rms_norm_grad";
  const Array dx = empty_like(dy), dresidual = empty_like(residual_out), dweight = empty_like(weight);
  Call{add_rms_norm_grad,
       view(op, "residual_out", residual_out),
       view(op, "weight", weight),
       view(op, "rstd", rstd),
       view(op, "dy", dy),
       view(op, "dresidual_out", dresidual_out),
       result(dx),
       result(dresidual),
       result(dweight)};
  return py::make_tuple(dx, dresidual, dweight);
}

}  // namespace

FUSIONKIT_BIND(fusion_add_rms_norm) {
  module.def("add_rms_norm", &add_rms_norm_arrays, "x"_a, "residual"_a, "weight"_a, "epsilon"_a, "want_rstd"_a = false,
             "-> (y, residual_out, rstd or None)");
  module.def("add_rms_norm_grad", &add_rms_norm_grad_arrays, "residual_out"_a, "weight"_a, "rstd"_a, "dy"_a,
             "dresidual_out"_a = py::none(), "-> (dx, dresidual, dweight)");
}

}  // namespace fusionkit_cpu
