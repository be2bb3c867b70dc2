// fused_rotary_embedding_gcu(query, key, cos_sin_table, positions; is_neox) -> query_out, key_out. Forward only.
#include "contract/rope.h"
#include "ops/limits.h"
#include "ops/operand.h"
#include "ops/vendor.h"

namespace fusionkit_emulator::ops {
namespace {

constexpr char kOp[] = "fused_rotary_embedding_gcu";

RopeShape shape_of(const Tensor& x) {
  const Shape shape = x.shape();
  return {shape[0], shape[1], shape[2], shape[3]};
}

void check(const Tensor& query, const Tensor& key, const Tensor& table, const Tensor& positions) {
  const Limits limits(kOp);
  for (const auto& [name, tensor] : {std::pair("query", query), std::pair("key", key),
                                     std::pair("cos_sin_table", table), std::pair("positions", positions)}) {
    limits.tensor(name, tensor);
  }
  limits.dtype("query", query, {DataType::FLOAT32, DataType::FLOAT16, DataType::BFLOAT16});
  limits.same_dtype("key", key, "query", query);
  limits.num_dims("query", query, 4, "[batch_size, seq_len, num_heads, head_dim]");
  limits.num_dims("key", key, 4, "[batch_size, seq_len, num_key_value_heads, head_dim]");
  const Shape shape = query.shape();
  limits.shape("key", key, {shape[0], shape[1], key.shape()[2], shape[3]},
               "[batch_size, seq_len, num_key_value_heads, head_dim]");
  limits.require(shape[3] % 2 == 0, "head_dim", "even", std::to_string(shape[3]));
  limits.dtype("cos_sin_table", table, {DataType::FLOAT32});
  limits.num_dims("cos_sin_table", table, 2, "[max_position, head_dim]");
  limits.shape("cos_sin_table", table, {table.shape()[0], shape[3]}, "[max_position, head_dim]");
  limits.dtype("positions", positions, {DataType::INT32, DataType::INT64});
  limits.shape("positions", positions, {shape[0], shape[1]}, "[batch_size, seq_len]");
}

Tensors forward(const Tensor& query, const Tensor& key, const Tensor& table, const Tensor& positions, bool is_neox) {
  check(query, key, table, positions);
  const Tensors made{result(query, query.shape(), query.dtype()), result(key, key.shape(), key.dtype())};
  launch(kOp, query,
         [=, query_shape = shape_of(query), key_shape = shape_of(key), rows = table.shape()[0], q = Operand(query),
          k = Operand(key), table = Operand(table), positions = Operand(positions), q_out = Operand(made[0]),
          k_out = Operand(made[1])] {
           const std::vector<float> angles = table.floats();
           const std::vector<int64_t> at = positions.integers();
           std::vector<float> q_values(q.size), k_values(k.size);
           rope_from_table(q.floats().data(), angles.data(), rows, at.data(), is_neox, query_shape, q_values.data());
           rope_from_table(k.floats().data(), angles.data(), rows, at.data(), is_neox, key_shape, k_values.data());
           q_out.store(q_values);
           k_out.store(k_values);
         });
  return made;
}

std::vector<Shape> shapes(const Shape& query, const Shape& key, const Shape&, const Shape&, bool) {
  return {query, key};
}
std::vector<DataType> dtypes(const DataType& query, const DataType& key, const DataType&, const DataType&) {
  return {query, key};
}

const Vendor registered("gcu", [] {
  paddle::OpMetaInfoBuilder(kOp, 0)
      .Inputs({"query", "key", "cos_sin_table", "positions"})
      .Outputs({"query_out", "key_out"})
      .Attrs({"is_neox: bool"})
      .SetKernelFn(PD_KERNEL(forward))
      .SetInferShapeFn(PD_INFER_SHAPE(shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(dtypes));
});

}  // namespace
}  // namespace fusionkit_emulator::ops
