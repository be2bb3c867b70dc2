#include <pybind11/stl.h>

#include "arrays.h"
#include "bind.h"
#include "fused_linear_cross_entropy.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

auto linear_cross_entropy_arrays(const Array& x, const Array& weight, const Array& labels, int64_t ignore_index,
                                 bool want_grads) {
  const char* op = "fused_linear_cross_entropy";
  const Array loss_sum = empty({1}, py::dtype::of<float>()), num_tokens = empty({1}, py::dtype::of<int64_t>());
  const OptionalArray dx = want_grads ? OptionalArray(empty_like(x)) : std::nullopt;
  const OptionalArray dweight = want_grads ? OptionalArray(empty_like(weight)) : std::nullopt;
  Call{linear_cross_entropy,       view(op, "x", x), view(op, "weight", weight),
       view(op, "labels", labels), ignore_index,     result(loss_sum),
       result(num_tokens),         result(dx),       result(dweight)};
  return py::make_tuple(loss_sum, num_tokens, dx, dweight);
}

}  // namespace

FUSIONKIT_BIND(fused_linear_cross_entropy) {
  module.def("linear_cross_entropy", &linear_cross_entropy_arrays, "x"_a, "weight"_a, "labels"_a, "ignore_index"_a,
             "want_grads"_a = false,
             "-> (loss_sum [1], num_tokens [1], dx, dweight), the gradients of loss_sum or None");
}

}  // namespace fusionkit_cpu
