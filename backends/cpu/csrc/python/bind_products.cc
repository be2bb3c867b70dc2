#include <pybind11/stl.h>

#include <stdexcept>

#include "arrays.h"
#include "bind.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

using Bytes = py::array_t<uint8_t>;

// x's shape with the last axis replaced.
Array empty_product(const Array& x, int64_t out_features) {
  std::vector<int64_t> shape = shape_of(x);
  if (!shape.empty()) shape.back() = out_features;
  return empty(shape, x.dtype());
}

Array linear_array(const Array& x, const Array& weight, const OptionalArray& bias) {
  const Array y = empty_product(x, axis_size(weight, 1));
  Call{linear, view("fused_linear", "x", x), view("fused_linear", "weight", weight), view("fused_linear", "bias", bias),
       result(y)};
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

DType dtype_named(const std::string& name) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    if (name == dtype_name(dtype)) return dtype;
  throw std::invalid_argument("pack_weight: dtype must be float32, bfloat16 or float16, got \"" + name + "\"");
}

Array pack_weight_array(const Array& weight, const std::string& dtype) {
  const Tensor source = view("pack_weight", "weight", weight);
  const DType packed_dtype = dtype_named(dtype);
  const auto num_bytes = static_cast<int64_t>(packed_weight_size(source, packed_dtype));
  const Array packed = empty({num_bytes}, py::dtype::of<uint8_t>());
  Call{pack_weight, source, packed_dtype, const_cast<void*>(packed.data())};
  return packed;
}

Array linear_packed_array(const Array& x, const Bytes& packed, int64_t in_features, int64_t out_features,
                          const OptionalArray& bias, const OptionalArray& out) {
  const char* op = "fused_linear_packed";
  if (packed.ndim() != 1 || !(packed.flags() & py::array::c_style))
    throw std::invalid_argument(
        "fused_linear_packed: packed must be the contiguous uint8 array that pack_weight returned");
  const Array y = out ? *out : empty_product(x, out_features);
  Call{linear_packed,
       view(op, "x", x),
       static_cast<const void*>(packed.data()),
       static_cast<size_t>(packed.size()),
       in_features,
       out_features,
       view(op, "bias", bias),
       out ? writable_view(op, "out", y) : result(y)};
  return y;
}

void weight_grad_array(const Array& x, const Array& dy, const Array& dweight, bool accumulate) {
  const char* op = "weight_grad";
  Call{weight_grad, view(op, "x", x), view(op, "dy", dy), writable_view(op, "dweight", dweight), accumulate};
}

void cast_array(const Array& from, const Array& to) {
  Call{cast, view("cast", "from", from), writable_view("cast", "to", to)};
}

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

FUSIONKIT_BIND(products) {
  module.def("linear", &linear_array, "x"_a, "weight"_a, "bias"_a = py::none(), "-> y");
  module.def("linear_grad", &linear_grad_arrays, "x"_a, "weight"_a, "dy"_a, "bias"_a = py::none(),
             "-> (dx, dweight, dbias or None); of bias only shape and dtype are read");
  module.def("pack_weight", &pack_weight_array, "weight"_a, "dtype"_a, "-> uint8 array");
  module.def("linear_packed", &linear_packed_array, "x"_a, py::arg("packed").noconvert(), "in_features"_a,
             "out_features"_a, "bias"_a = py::none(), py::arg("out").noconvert() = py::none(),
             "-> y, which is out if given");
  module.def("weight_grad", &weight_grad_array, "x"_a, "dy"_a, py::arg("dweight").noconvert(), "accumulate"_a = false,
             "dweight = x^T dy, or += in float32");
  module.def("cast", &cast_array, "from"_a, py::arg("to").noconvert(), "to = from in to's dtype; both [rows, cols]");
  module.def("linear_cross_entropy", &linear_cross_entropy_arrays, "x"_a, "weight"_a, "labels"_a, "ignore_index"_a,
             "want_grads"_a = false,
             "-> (loss_sum [1], num_tokens [1], dx, dweight), the gradients of loss_sum or None");
}

}  // namespace fusionkit_cpu
