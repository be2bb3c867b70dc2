// fused_rope(query, cos, sin) -> query_out: one tensor a call, halves rotated, no position_ids; a gradient for query.
#include "contract/rope.h"
#include "ops/limits.h"
#include "ops/operand.h"
#include "ops/vendor.h"

namespace fusionkit_emulator::ops {
namespace {

constexpr char kOp[] = "fused_rope";
using Rotate = void (*)(const float*, const float*, const float*, const RopeShape&, float*);

RopeShape check(const Tensor& query, const Tensor& cos, const Tensor& sin) {
  const Limits limits(kOp);
  limits.tensor("query", query);
  limits.dtype("query", query, {DataType::FLOAT32, DataType::FLOAT16, DataType::BFLOAT16});
  limits.num_dims("query", query, 4, "[batch_size, seq_len, num_heads, head_dim]");
  const Shape shape = query.shape();
  limits.require(shape[3] % 64 == 0, "head_dim", "a multiple of 64", std::to_string(shape[3]));
  for (const auto& [name, table] : {std::pair("cos", cos), std::pair("sin", sin)}) {
    limits.tensor(name, table);
    limits.same_dtype(name, table, "query", query);
    limits.shape(name, table, {1, shape[1], 1, shape[3]}, "[1, seq_len, 1, head_dim]");
  }
  return {shape[0], shape[1], shape[2], shape[3]};
}

Tensors rotated(const Tensor& x, const Tensor& cos, const Tensor& sin, Rotate rotate) {
  const RopeShape shape = check(x, cos, sin);
  const Tensor made = result(x, x.shape(), x.dtype());
  launch(kOp, x, [=, x = Operand(x), cos = Operand(cos), sin = Operand(sin), y = Operand(made)] {
    std::vector<float> values(y.size);
    rotate(x.floats().data(), cos.floats().data(), sin.floats().data(), shape, values.data());
    y.store(values);
  });
  return {made};
}

Tensors forward(const Tensor& query, const Tensor& cos, const Tensor& sin) {
  return rotated(query, cos, sin, rope_halves);
}

Tensors backward(const Tensor& cos, const Tensor& sin, const Tensor& dy) {
  return rotated(dy, cos, sin, rope_halves_grad);
}

std::vector<Shape> shapes(const Shape& query, const Shape&, const Shape&) { return {query}; }
std::vector<DataType> dtypes(const DataType& query, const DataType&, const DataType&) { return {query}; }
std::vector<Shape> gradient_shapes(const Shape&, const Shape&, const Shape& dy) { return {dy}; }
std::vector<DataType> gradient_dtypes(const DataType&, const DataType&, const DataType& dy) { return {dy}; }

const Vendor registered("npu", [] {
  paddle::OpMetaInfoBuilder(kOp, 0)
      .Inputs({"query", "cos", "sin"})
      .Outputs({"query_out"})
      .SetKernelFn(PD_KERNEL(forward))
      .SetInferShapeFn(PD_INFER_SHAPE(shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(dtypes));
  paddle::OpMetaInfoBuilder(kOp, 1)
      .Inputs({"cos", "sin", paddle::Grad("query_out")})
      .Outputs({paddle::Grad("query")})
      .SetKernelFn(PD_KERNEL(backward))
      .SetInferShapeFn(PD_INFER_SHAPE(gradient_shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(gradient_dtypes));
});

}  // namespace
}  // namespace fusionkit_emulator::ops
