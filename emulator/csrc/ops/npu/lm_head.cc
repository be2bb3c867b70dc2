// lm_head(x, norm_weight, linear_weight; epsilon, trans_weight, rank, nranks, root, ring_id) -> out: the last norm and
// the product with the vocabulary.
#include "contract/decoder_layer.h"
#include "contract/rms_norm.h"
#include "ops/limits.h"
#include "ops/operand.h"
#include "ops/vendor.h"

namespace fusionkit_emulator::ops {
namespace {

constexpr char kOp[] = "lm_head";

Tensors head(const Tensor& x, const Tensor& norm_weight, const Tensor& linear_weight, float epsilon, bool trans_weight,
             int64_t, int64_t nranks, int64_t, int) {
  const Limits limits(kOp);
  for (const auto& [name, tensor] :
       {std::pair("x", x), std::pair("norm_weight", norm_weight), std::pair("linear_weight", linear_weight)}) {
    limits.tensor(name, tensor);
    limits.dtype(name, tensor, {DataType::FLOAT16});
  }
  limits.require(nranks == 1, "nranks", "1: a vocabulary on several cards is not emulated", std::to_string(nranks));
  limits.num_dims("x", x, 2, "[rows, hidden_size]");
  limits.num_dims("linear_weight", linear_weight, 2, "a matrix");
  const int64_t rows = x.shape()[0], size = x.shape()[1];
  limits.shape("norm_weight", norm_weight, {size}, "[hidden_size]");
  const Shape shape = linear_weight.shape();
  limits.require(shape[trans_weight ? 1 : 0] == size, "linear_weight",
                 trans_weight ? "[vocab_size, hidden_size]" : "[hidden_size, vocab_size]", shown(shape));
  const int64_t vocab_size = shape[trans_weight ? 0 : 1];
  const Tensor made = result(x, {rows, vocab_size}, x.dtype());
  launch(kOp, x, [=, x = Operand(x), norm = Operand(norm_weight), weight = Operand(linear_weight), y = Operand(made)] {
    std::vector<float> normalised(x.size);
    rms_norm(x.floats().data(), norm.floats().data(), rows, size, epsilon, normalised.data(), nullptr);
    y.store(product(normalised, matrix(weight, trans_weight, size), size, vocab_size));
  });
  return {made};
}

std::vector<DataType> dtypes(const DataType& x, const DataType&, const DataType&) { return {x}; }
std::vector<Shape> shapes(const Shape& x, const Shape&, const Shape& weight, float, bool trans_weight, int64_t,
                          int64_t nranks, int64_t, int) {
  return {{x[0], weight[trans_weight ? 0 : 1] * nranks}};
}

const Vendor registered("npu", [] {
  paddle::OpMetaInfoBuilder(kOp, 0)
      .Inputs({"x", "norm_weight", "linear_weight"})
      .Outputs({"out"})
      .Attrs(
          {"epsilon: float", "trans_weight: bool", "rank: int64_t", "nranks: int64_t", "root: int64_t", "ring_id: int"})
      .SetKernelFn(PD_KERNEL(head))
      .SetInferShapeFn(PD_INFER_SHAPE(shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(dtypes));
});

}  // namespace
}  // namespace fusionkit_emulator::ops
