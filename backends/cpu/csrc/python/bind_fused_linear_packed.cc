#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "arrays.h"
#include "bind.h"
#include "fused_linear_packed.h"
#include "fused_linear_packed_grad.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

using Bytes = py::array_t<uint8_t>;

DType dtype_named(const std::string& name) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    if (name == dtype_name(dtype)) return dtype;
  throw std::invalid_argument("pack_weight: dtype must be float32, bfloat16 or float16, got \"" + name + "\"");
}

Array pack_weight_array(const Array& weight, const std::string& dtype, bool batch_invariant) {
  const Tensor source = view("pack_weight", "weight", weight);
  const DType packed_dtype = dtype_named(dtype);
  const auto num_bytes = static_cast<int64_t>(packed_weight_size(source, packed_dtype, batch_invariant));
  const Array packed = empty({num_bytes}, py::dtype::of<uint8_t>());
  Call{pack_weight, source, packed_dtype, batch_invariant, const_cast<void*>(packed.data())};
  return packed;
}

void require_bytes(const char* op, const Bytes& packed) {
  if (packed.ndim() != 1 || !(packed.flags() & py::array::c_style))
    throw std::invalid_argument(std::string(op) +
                                ": packed must be the contiguous uint8 array that pack_weight returned");
}

Array linear_packed_array(const Array& x, const Bytes& packed, int64_t in_features, int64_t out_features,
                          const OptionalArray& bias, const OptionalArray& out, bool batch_invariant) {
  const char* op = "fused_linear_packed";
  require_bytes(op, packed);
  const Array y = out ? *out : empty_with_last(x, out_features);
  Call{linear_packed,
       view(op, "x", x),
       static_cast<const void*>(packed.data()),
       static_cast<size_t>(packed.size()),
       in_features,
       out_features,
       view(op, "bias", bias),
       out ? writable_view(op, "out", y) : result(y),
       batch_invariant};
  return y;
}

auto linear_packed_grad_arrays(const Bytes& packed, int64_t in_features, int64_t out_features, const Array& dy,
                               const OptionalArray& bias) {
  const char* op = "fused_linear_packed_grad";
  require_bytes(op, packed);
  const Array dx = empty_with_last(dy, in_features);
  const OptionalArray dbias = bias ? OptionalArray(empty_like(*bias)) : std::nullopt;
  Call{linear_packed_grad,
       static_cast<const void*>(packed.data()),
       static_cast<size_t>(packed.size()),
       in_features,
       out_features,
       view(op, "dy", dy),
       result(dx),
       result(dbias)};
  return py::make_tuple(dx, dbias);
}

using Codes = py::array_t<uint8_t, 0>;
using Floats = py::array_t<float, py::array::c_style>;

// Codes of [in_features, out_features] in any order, and contiguous scales: fusionkit's QuantizedWeight has checked
// them.
Array pack_quantized_array(const Codes& codes, const Floats& scales, const std::optional<Floats>& minimums, int bits,
                           int64_t group_size, const std::string& scale_dtype, bool rounds_x) {
  const float* minimums_data = minimums ? minimums->data() : nullptr;
  QuantizedWeight weight{codes.data(),
                         codes.strides(0),
                         codes.strides(1),
                         1,
                         scales.data(),
                         minimums_data,
                         bits,
                         codes.shape(0),
                         codes.shape(1),
                         group_size,
                         dtype_named(scale_dtype),
                         rounds_x};
  Call{shorten_scales, &weight};
  const Array packed = empty({static_cast<int64_t>(quantized_size(weight))}, py::dtype::of<uint8_t>());
  Call{pack_quantized, weight, const_cast<void*>(packed.data())};
  return packed;
}

}  // namespace

FUSIONKIT_BIND(fused_linear_packed) {
  module.def("pack_weight", &pack_weight_array, "weight"_a, "dtype"_a, "batch_invariant"_a = false, "-> uint8 array");
  module.def("pack_quantized", &pack_quantized_array, py::arg("codes").noconvert(), "scales"_a, "minimums"_a, "bits"_a,
             "group_size"_a, "scale_dtype"_a, "rounds_x"_a = false, "-> uint8 array");
  module.def("linear_packed", &linear_packed_array, "x"_a, py::arg("packed").noconvert(), "in_features"_a,
             "out_features"_a, "bias"_a = py::none(), py::arg("out").noconvert() = py::none(),
             "batch_invariant"_a = false, "-> y, which is out if given");
  module.def("linear_packed_grad", &linear_packed_grad_arrays, py::arg("packed").noconvert(), "in_features"_a,
             "out_features"_a, "dy"_a, "bias"_a = py::none(),
             "-> (dx, dbias or None), through a weight of 8 or 4 bits; of bias only shape and dtype are read");
}

}  // namespace fusionkit_cpu
