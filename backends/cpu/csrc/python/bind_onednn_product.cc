#include "arrays.h"
#include "bind.h"
#include "onednn_product.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

py::cpp_function onednn_product_of(const Array& weight) {
  const auto multiply = onednn_product(view("onednn_product", "weight", weight));
  return py::cpp_function(
      [multiply](const Array& x, const Array& y) {
        const Tensor from = view("onednn_product", "x", x), to = writable_view("onednn_product", "y", y);
        const py::gil_scoped_release release;
        multiply(from, to);
      },
      "x"_a, py::arg("y").noconvert());
}

}  // namespace

FUSIONKIT_BIND(onednn_product) {
  module.def(
      "onednn_product", &onednn_product_of, "weight"_a,
      "For benchmarks: -> a function of x and y that sets y = x @ weight by oneDNN alone, weight laid out before.");
}

}  // namespace fusionkit_cpu
