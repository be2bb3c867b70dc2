#include <pybind11/stl.h>

#include "arrays.h"
#include "bind.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

OptionalArray empty_rstd(const Array& x, bool wanted) {
  if (!wanted) return std::nullopt;
  const int64_t size = axis_size(x, static_cast<int>(x.ndim()) - 1);
  return empty({size > 0 ? x.size() / size : 0}, py::dtype::of<float>());
}

auto rms_norm_arrays(const Array& x, const Array& weight, float epsilon, bool want_rstd) {
  const char* op = "fusion_rms_norm";
  const Array y = empty_like(x);
  const OptionalArray rstd = empty_rstd(x, want_rstd);
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

auto add_rms_norm_arrays(const Array& x, const Array& residual, const Array& weight, float epsilon, bool want_rstd) {
  const char* op = "fusion_add_rms_norm";
  const Array y = empty_like(x), residual_out = empty_like(residual);
  const OptionalArray rstd = empty_rstd(x, want_rstd);
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

Array rope_array(const Array& x, const Array& cos, const Array& sin, const OptionalArray& position_ids,
                 bool interleaved, bool inverse) {
  const Array y = empty_like(x);
  Call{rope,
       view("fusion_rope", "x", x),
       view("fusion_rope", "cos", cos),
       view("fusion_rope", "sin", sin),
       view("fusion_rope", "position_ids", position_ids),
       interleaved,
       inverse,
       result(y)};
  return y;
}

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

void scale_array(const Array& x, const Array& factor) {
  Call{static_cast<void (*)(const Tensor&, const Tensor&)>(scale), writable_view("scale", "x", x),
       view("scale", "factor", factor)};
}

}  // namespace

FUSIONKIT_BIND(elementwise) {
  module.def("rms_norm", &rms_norm_arrays, "x"_a, "weight"_a, "epsilon"_a, "want_rstd"_a = false,
             "-> (y, rstd or None)");
  module.def("rms_norm_grad", &rms_norm_grad_arrays, "x"_a, "weight"_a, "rstd"_a, "dy"_a, "-> (dx, dweight)");
  module.def("add_rms_norm", &add_rms_norm_arrays, "x"_a, "residual"_a, "weight"_a, "epsilon"_a, "want_rstd"_a = false,
             "-> (y, residual_out, rstd or None)");
  module.def("add_rms_norm_grad", &add_rms_norm_grad_arrays, "residual_out"_a, "weight"_a, "rstd"_a, "dy"_a,
             "dresidual_out"_a = py::none(), "-> (dx, dresidual, dweight)");
  module.def("rope", &rope_array, "x"_a, "cos"_a, "sin"_a, "position_ids"_a = py::none(), "interleaved"_a = false,
             "inverse"_a = false, "-> y");
  module.def("swiglu", &swiglu_array, "gate"_a, "up"_a, "-> y");
  module.def("swiglu_grad", &swiglu_grad_arrays, "gate"_a, "up"_a, "dy"_a, "-> (dgate, dup)");
  module.def("scale", &scale_array, "x"_a, "factor"_a, "x *= factor[0], in place");
}

}  // namespace fusionkit_cpu
