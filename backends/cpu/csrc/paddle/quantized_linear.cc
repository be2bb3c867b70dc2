// fusionkit_quantized_linear: x, codes, scales, minimums?, bias? -> y, with a weight of 8 or 4 bits in arrays that are
// no backend's own; fusionkit/quantized_arrays.py says what they hold. It makes floats of the whole weight in every
// call: a program's loader packs the arrays once instead. Both give the same bits. For inference: it has no gradient.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "fused_linear.h"
#include "host_view.h"
#include "paddle/phi/api/include/api.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_quantized_linear";

Shape output_shape(Shape x, const Shape& codes) {
  if (!x.empty() && !codes.empty()) x.back() = codes.back();
  return x;
}

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string(kOp) + ": " + what + ". Export the program again");
}

// Where the codes of one weight are, and what they stand for.
struct Codes {
  const uint8_t* bytes;
  const float *scales, *minimums;  // minimums: null where codes are symmetric
  int64_t bits, group_size, in_features, out_features;

  int at(int64_t k, int64_t n) const {
    if (bits == 8) return minimums ? bytes[k * out_features + n] : static_cast<int8_t>(bytes[k * out_features + n]);
    const int code = (bytes[k / 2 * out_features + n] >> (k % 2 * 4)) & 15;
    return minimums || code < 8 ? code : code - 16;
  }

  // Rounded once: a product of a code and a scale is exact in double.
  void to_floats(float* values) const {
    for (int64_t k = 0; k < in_features; ++k) {
      const int64_t group = k / group_size * out_features;
      for (int64_t n = 0; n < out_features; ++n) {
        const double value = static_cast<double>(at(k, n)) * scales[group + n];
        values[k * out_features + n] = static_cast<float>(minimums ? value + minimums[group + n] : value);
      }
    }
  }
};

Codes checked(const paddle::Tensor& codes, const paddle::Tensor& scales, const OptionalTensor& minimums, int64_t bits,
              int64_t group_size, int64_t in_features) {
  const HostView view(kOp);
  const int64_t group = group_size > 0 ? group_size : std::max<int64_t>(in_features, 1);
  const int64_t groups = (in_features + group - 1) / group;
  require(bits == 8 || bits == 4, "bits must be 8 or 4");
  const int64_t rows = bits == 8 ? in_features : (in_features + 1) / 2;
  require(codes.dims().size() == 2 && codes.dims()[0] == rows, "codes must be [in_features, out_features]");
  const auto is_whole = [&](const paddle::Tensor& each) {
    return each.shape() == Shape{groups, codes.shape()[1]} && each.dtype() == paddle::DataType::FLOAT32;
  };
  require(is_whole(scales) && (!minimums || is_whole(*minimums)),
          "scales and minimums must be [groups, out_features] float32");
  const auto floats = [&](const char* name, const paddle::Tensor& each) {
    return static_cast<const float*>(view.merged(name, each, 2).data);
  };
  const auto* bytes = static_cast<const uint8_t*>(view.bytes("codes", codes));
  return {bytes,       floats("scales", scales), minimums ? floats("minimums", *minimums) : nullptr, bits, group,
          in_features, codes.shape()[1]};
}

paddle::Tensor in_float32(const paddle::Tensor& tensor) {
  return tensor.dtype() == paddle::DataType::FLOAT32 ? tensor
                                                     : paddle::experimental::cast(tensor, paddle::DataType::FLOAT32);
}

Tensors forward(const paddle::Tensor& x, const paddle::Tensor& codes, const paddle::Tensor& scales,
                const OptionalTensor& minimums, const OptionalTensor& bias, int64_t bits, int64_t group_size,
                int64_t in_features) {
  const HostView view(kOp);
  // All on the host, or refused: codes last, whose dtype is checked with it.
  view("x", x), view("scales", scales), view("minimums", minimums), view("bias", bias), view.bytes("codes", codes);
  const Codes weight = checked(codes, scales, minimums, bits, group_size, in_features);
  const paddle::Tensor values = empty({in_features, weight.out_features}, paddle::DataType::FLOAT32);
  const auto values_view = view("weight", values);
  if (values_view.data != nullptr) weight.to_floats(static_cast<float*>(values_view.data));
  const paddle::Tensor rows = in_float32(x);
  const OptionalTensor float_bias = bias ? OptionalTensor(in_float32(*bias)) : OptionalTensor();
  const paddle::Tensor y = empty(output_shape(x.shape(), codes.shape()), paddle::DataType::FLOAT32);
  fusionkit_cpu::linear(view("x", rows), values_view, view("bias", float_bias), view("y", y), true);
  return {y.dtype() == x.dtype() ? y : paddle::experimental::cast(y, x.dtype())};
}

std::vector<Shape> infer_shape(const Shape& x, const Shape& codes, const Shape&, const OptionalShape&,
                               const OptionalShape&, int64_t, int64_t, int64_t) {
  return {output_shape(x, codes)};
}

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& x, const paddle::DataType&, const paddle::DataType&,
                                          const OptionalDType&, const OptionalDType&) {
  return {x};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_quantized_linear)
    .Inputs({"x", "codes", "scales", paddle::Optional("minimums"), paddle::Optional("bias")})
    .Outputs({"y"})
    .Attrs({"bits: int64_t", "group_size: int64_t", "in_features: int64_t"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));
