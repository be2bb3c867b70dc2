// fusionkit_quantized_linear: x, codes, scales, minimums?, bias? -> y, with a weight of 8 or 4 bits in arrays that are
// no backend's own; fusionkit/quantized_arrays.py says what they hold. It packs the whole weight in every call: a
// program's loader packs the arrays once instead. Both give the same bits. For inference: it has no gradient.
// rounds_x: to int8, before the product.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "fused_linear_packed.h"
#include "host_view.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_quantized_linear";

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string(kOp) + ": " + what + ". Export the program again");
}

fusionkit_cpu::QuantizedWeight checked(const paddle::Tensor& codes, const paddle::Tensor& scales,
                                       const OptionalTensor& minimums, int64_t bits, int64_t group_size,
                                       int64_t in_features, bool rounds_x) {
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
  const float* lowest = minimums ? floats("minimums", *minimums) : nullptr;
  return {bytes,
          codes.shape()[1],
          1,
          bits == 8 ? 1 : 2,
          floats("scales", scales),
          lowest,
          static_cast<int>(bits),
          in_features,
          codes.shape()[1],
          group,
          fusionkit_cpu::DType::kFloat32,
          rounds_x};
}

Tensors forward(const paddle::Tensor& x, const paddle::Tensor& codes, const paddle::Tensor& scales,
                const OptionalTensor& minimums, const OptionalTensor& bias, int64_t bits, int64_t group_size,
                int64_t in_features, bool rounds_x) {
  const HostView view(kOp);
  // All on the host, or refused: codes last, whose dtype is checked with it.
  view("x", x), view("scales", scales), view("minimums", minimums), view("bias", bias), view.bytes("codes", codes);
  const auto weight = checked(codes, scales, minimums, bits, group_size, in_features, rounds_x);
  const auto size = static_cast<int64_t>(fusionkit_cpu::quantized_size(weight));
  const paddle::Tensor packed = empty({size}, paddle::DataType::UINT8);
  auto* bytes = const_cast<void*>(view.bytes("packed", packed));
  fusionkit_cpu::pack_quantized(weight, bytes);
  const paddle::Tensor y = empty(product_shape(x.shape(), codes.shape()), x.dtype());
  fusionkit_cpu::linear_packed(view("x", x), bytes, static_cast<size_t>(size), in_features, weight.out_features,
                               view("bias", bias), view("y", y));
  return {y};
}

std::vector<Shape> infer_shape(const Shape& x, const Shape& codes, const Shape&, const OptionalShape&,
                               const OptionalShape&, int64_t, int64_t, int64_t, bool) {
  return {product_shape(x, codes)};
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
    .Attrs({"bits: int64_t", "group_size: int64_t", "in_features: int64_t", "rounds_x: bool"})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));
