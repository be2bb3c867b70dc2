// fused_sdp_flash_attention_gcu(query, key, value, attn_mask; dropout, causal, is_test) -> attention_out: float16, a
// mask to be added, forward only.
#include <cmath>

#include "contract/attention.h"
#include "ops/limits.h"
#include "ops/operand.h"
#include "ops/vendor.h"

namespace fusionkit_emulator::ops {
namespace {

constexpr char kOp[] = "fused_sdp_flash_attention_gcu";

Attention check(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask) {
  const Limits limits(kOp);
  for (const auto& [name, tensor] : {std::pair("query", q), std::pair("key", k), std::pair("value", v)}) {
    limits.tensor(name, tensor);
    limits.dtype(name, tensor, {DataType::FLOAT16});
    limits.num_dims(name, tensor, 4, "[batch_size, seq_len, num_heads, head_dim]");
  }
  const Shape query = q.shape(), key = k.shape();
  limits.shape("key", k, {query[0], key[1], key[2], query[3]}, "[batch_size, kv_len, num_heads, head_dim]");
  limits.shape("value", v, key, "as key");
  if (mask) {
    limits.tensor("attn_mask", *mask);
    limits.same_dtype("attn_mask", *mask, "query", q);
    limits.shape("attn_mask", *mask, {query[0], 1, query[1], key[1]}, "[batch_size, 1, q_len, kv_len]");
  }
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(query[3])));
  return {query[0], query[1], key[1], query[2], key[2], query[3], scale};
}

Tensors forward(const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& attn_mask,
                float dropout, bool causal, bool is_test) {
  Attention shape = check(query, key, value, attn_mask);
  shape.causal = causal;
  shape.mask_batches = shape.batch_size;
  // The contract says nothing of grouped heads, of causal with two lengths or beside a mask, and of what is dropped.
  const bool silent = shape.num_heads != shape.num_key_value_heads ||
                      (causal && (shape.q_len != shape.kv_len || attn_mask)) || (dropout > 0 && !is_test);
  const Tensor made = result(query, query.shape(), query.dtype());
  launch(kOp, query,
         [=, q = Operand(query), k = Operand(key), v = Operand(value), out = Operand(made),
          mask = attn_mask ? Operand(*attn_mask) : Operand()] {
           if (silent) return out.store_nan();
           Attention call = shape;
           const std::vector<float> added = mask.storage == nullptr ? std::vector<float>() : mask.floats();
           call.added = mask.storage == nullptr ? nullptr : added.data();
           std::vector<float> values(out.size);
           attention(call, q.floats().data(), k.floats().data(), v.floats().data(), values.data(), nullptr, nullptr);
           out.store(values);
         });
  return {made};
}

std::vector<Shape> shapes(const Shape& query, const Shape&, const Shape&, const OptionalShape&, float, bool, bool) {
  return {query};
}
std::vector<DataType> dtypes(const DataType& query, const DataType&, const DataType&, const OptionalDataType&) {
  return {query};
}

const Vendor registered("gcu", [] {
  paddle::OpMetaInfoBuilder(kOp, 0)
      .Inputs({"query", "key", "value", paddle::Optional("attn_mask")})
      .Outputs({"attention_out"})
      .Attrs({"dropout: float", "causal: bool", "is_test: bool"})
      .SetKernelFn(PD_KERNEL(forward))
      .SetInferShapeFn(PD_INFER_SHAPE(shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(dtypes));
});

}  // namespace
}  // namespace fusionkit_emulator::ops
