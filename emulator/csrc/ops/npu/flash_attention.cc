// flash_attention_npu, in the form with 10 arguments or, by default, with 13, as PaddleNLP 3.0.0b4 calls it.
#include <cstdlib>
#include <cstring>

#include "ops/limits.h"
#include "ops/npu/flash_attention_call.h"
#include "ops/vendor.h"

namespace fusionkit_emulator::ops {
namespace {

constexpr char kOp[] = "flash_attention_npu";

Tensors attend(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
               const FlashAttentionFlags& flags) {
  const FlashAttentionCall call(q, k, v, mask, flags);
  const Shape statistics{q.shape()[0], q.shape()[2], q.shape()[1], kStatistics};
  Tensors made{result(q, q.shape(), q.dtype()), result(q, statistics, DataType::FLOAT32),
               result(q, statistics, DataType::FLOAT32), result(q, {1}, q.dtype())};
  for (int i = 0; i < 3; ++i) made.push_back(result(q, {1}, DataType::INT64));
  std::vector<Operand> out(made.begin(), made.end());
  launch(kOp, q, [=] {
    call.forward(out[0], out[1], out[2]);
    out[3].store_nan();  // softmax_out is reserved
    for (int i = 4; i < 7; ++i) out[i].store_zeros();
  });
  return made;
}

Tensors gradients(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, const Tensor& dout,
                  const FlashAttentionFlags& flags) {
  Limits(kOp).tensor("the gradient of attention_score", dout);
  const FlashAttentionCall call(q, k, v, mask, flags);
  const Tensors made{result(q, q.shape(), q.dtype()), result(k, k.shape(), k.dtype()), result(v, v.shape(), v.dtype())};
  launch(kOp, q, [call, dout = Operand(dout), out = std::vector<Operand>(made.begin(), made.end())] {
    call.backward(dout, out[0], out[1], out[2]);
  });
  return made;
}

std::vector<Shape> output_shapes(const Shape& q) {
  const Shape statistics{q[0], q[2], q[1], kStatistics};
  return {q, statistics, statistics, {1}, {1}, {1}, {1}};
}

std::vector<DataType> output_dtypes(DataType q) {
  const auto f = DataType::FLOAT32, i = DataType::INT64;
  return {q, f, f, q, i, i, i};
}

// The gradient takes what the vendor's keeps: the memory of a step counts it. The probabilities are computed again.
struct Ten {
  static Tensors forward(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor&,
                         const OptionalTensor& mask, float dropout, bool causal, bool, bool is_test, bool triangle) {
    return attend(q, k, v, mask, {dropout, causal, is_test, triangle, false});
  }
  static Tensors backward(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, const Tensor&,
                          const Tensor&, const Tensor&, const Tensor& dout, float dropout, bool causal, bool,
                          bool is_test, bool triangle) {
    return gradients(q, k, v, mask, dout, {dropout, causal, is_test, triangle, false});
  }
  static std::vector<Shape> shapes(const Shape& q, const Shape&, const Shape&, const OptionalShape&,
                                   const OptionalShape&, float, bool, bool, bool, bool) {
    return output_shapes(q);
  }
  static std::vector<DataType> dtypes(const DataType& q, const DataType&, const DataType&, const OptionalDataType&,
                                      const OptionalDataType&) {
    return output_dtypes(q);
  }
  static std::vector<Shape> gradient_shapes(const Shape& q, const Shape& k, const Shape& v, const OptionalShape&,
                                            const Shape&, const Shape&, const Shape&, const Shape&, float, bool, bool,
                                            bool, bool) {
    return {q, k, v};
  }
};

// The contract names neither the two inputs nor the last attribute that this form has more.
struct Thirteen {
  static Tensors forward(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor&,
                         const OptionalTensor& mask, const OptionalTensor& sixth, const OptionalTensor& seventh,
                         float dropout, bool causal, bool, bool is_test, bool triangle, bool last) {
    return attend(q, k, v, mask, {dropout, causal, is_test, triangle, sixth || seventh || last});
  }
  static Tensors backward(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
                          const OptionalTensor& sixth, const OptionalTensor& seventh, const Tensor&, const Tensor&,
                          const Tensor&, const Tensor& dout, float dropout, bool causal, bool, bool is_test,
                          bool triangle, bool last) {
    return gradients(q, k, v, mask, dout, {dropout, causal, is_test, triangle, sixth || seventh || last});
  }
  static std::vector<Shape> shapes(const Shape& q, const Shape&, const Shape&, const OptionalShape&,
                                   const OptionalShape&, const OptionalShape&, const OptionalShape&, float, bool, bool,
                                   bool, bool, bool) {
    return output_shapes(q);
  }
  static std::vector<DataType> dtypes(const DataType& q, const DataType&, const DataType&, const OptionalDataType&,
                                      const OptionalDataType&, const OptionalDataType&, const OptionalDataType&) {
    return output_dtypes(q);
  }
  static std::vector<Shape> gradient_shapes(const Shape& q, const Shape& k, const Shape& v, const OptionalShape&,
                                            const OptionalShape&, const OptionalShape&, const Shape&, const Shape&,
                                            const Shape&, const Shape&, float, bool, bool, bool, bool, bool) {
    return {q, k, v};
  }
};

template <typename Form>
void register_form(std::vector<std::string> more_inputs, std::vector<std::string> more_attributes) {
  std::vector<std::string> inputs{"query", "key", "value", paddle::Optional("fixed_seed_offset"),
                                  paddle::Optional("attn_mask")};
  std::vector<std::string> saved{"query", "key", "value", paddle::Optional("attn_mask")};
  for (const std::string& name : more_inputs) {
    inputs.push_back(paddle::Optional(name));
    saved.push_back(paddle::Optional(name));
  }
  for (const char* name : {"attention_score", "softmax_max", "softmax_sum"}) saved.push_back(name);
  saved.push_back(paddle::Grad("attention_score"));
  std::vector<std::string> attributes{"dropout: float", "causal: bool", "return_softmax: bool", "is_test: bool",
                                      "is_triangle_upper_mask: bool"};
  attributes.insert(attributes.end(), more_attributes.begin(), more_attributes.end());
  paddle::OpMetaInfoBuilder(kOp, 0)
      .Inputs(std::move(inputs))
      .Outputs({"attention_score", "softmax_max", "softmax_sum", "softmax_out", "seed", "offset", "numel"})
      .Attrs(std::vector<std::string>(attributes))
      .SetKernelFn(PD_KERNEL(Form::forward))
      .SetInferShapeFn(PD_INFER_SHAPE(Form::shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(Form::dtypes));
  paddle::OpMetaInfoBuilder(kOp, 1)
      .Inputs(std::move(saved))
      .Outputs({paddle::Grad("query"), paddle::Grad("key"), paddle::Grad("value")})
      .Attrs(std::move(attributes))
      .SetKernelFn(PD_KERNEL(Form::backward))
      .SetInferShapeFn(PD_INFER_SHAPE(Form::gradient_shapes));
}

const Vendor registered("npu", [] {
  const char* form = std::getenv("FUSIONKIT_EMULATOR_FLASH_ATTENTION_ARGUMENTS");
  if (form != nullptr && std::strcmp(form, "10") == 0) return register_form<Ten>({}, {});
  register_form<Thirteen>({"sixth", "seventh"}, {"last: bool"});
});

}  // namespace
}  // namespace fusionkit_emulator::ops
