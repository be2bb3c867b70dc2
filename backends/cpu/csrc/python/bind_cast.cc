#include "arrays.h"
#include "bind.h"
#include "cast.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

void cast_array(const Array& from, const Array& to) {
  Call{cast, view("cast", "from", from), writable_view("cast", "to", to)};
}

}  // namespace

FUSIONKIT_BIND(cast) {
  module.def("cast", &cast_array, "from"_a, py::arg("to").noconvert(), "to = from in to's dtype; both [rows, cols]");
}

}  // namespace fusionkit_cpu
