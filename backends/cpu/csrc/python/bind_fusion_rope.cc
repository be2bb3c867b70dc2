#include <pybind11/stl.h>

#include "arrays.h"
#include "bind.h"
#include "fusion_rope.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

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

}  // namespace

FUSIONKIT_BIND(fusion_rope) {
  module.def("rope", &rope_array, "x"_a, "cos"_a, "sin"_a, "position_ids"_a = py::none(), "interleaved"_a = false,
             "inverse"_a = false, "-> y");
}

}  // namespace fusionkit_cpu
