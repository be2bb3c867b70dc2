// fused_allgather_mm, fused_mm_reduce_scatter and fused_mm_allreduce, without gradients. Nothing overlaps here: the
// emulator shows what they take and give, not how fast.
#include <mutex>
#include <string>

#include "collectives.h"
#include "contract/decoder_layer.h"
#include "ops/limits.h"
#include "ops/operand.h"
#include "ops/vendor.h"

namespace fusionkit_emulator::ops {
namespace {

using fusionkit_parallel::Call;
using fusionkit_parallel::DType;
using fusionkit_parallel::Op;
using fusionkit_parallel::ReduceOp;

constexpr char kGather[] = "fused_allgather_mm", kScatter[] = "fused_mm_reduce_scatter",
               kReduce[] = "fused_mm_allreduce";

// x1 [M, K] times x2 [K, N]; leading axes of x1 count as rows.
struct Sizes {
  int64_t m, k, n;
};

Sizes check(const Limits& limits, const Tensor& x1, const Tensor& x2, int most_dims) {
  for (const auto& [name, tensor] : {std::pair("x1", x1), std::pair("x2", x2)}) {
    limits.tensor(name, tensor);
    limits.dtype(name, tensor, {DataType::FLOAT16, DataType::BFLOAT16});
  }
  limits.same_dtype("x2", x2, "x1", x1);
  const Shape shape = x1.shape();
  const auto dims = static_cast<int>(shape.size());
  limits.require(dims == 2 || dims == most_dims, "x1", most_dims == 2 ? "[M, K]" : "[M, K] or [B, S, K]", shown(shape));
  limits.num_dims("x2", x2, 2, "[K, N]");
  limits.require(x2.shape()[0] == shape.back(), "x2", "[K, N] with K = " + std::to_string(shape.back()),
                 shown(x2.shape()));
  return {x1.numel() / shape.back(), shape.back(), x2.shape()[1]};
}

void check_depth(const Limits& limits, int64_t k) {
  limits.require(256 <= k && k < 65535, "K", "in [256, 65535)", std::to_string(k));
}

void check_turn(const Limits& limits, int64_t comm_turn) {
  limits.require(comm_turn == 0, "comm_turn", "0", std::to_string(comm_turn));
}

void check_reduce(const Limits& limits, const std::string& reduce_op) {
  limits.require(reduce_op == "sum", "reduce_op", "sum", reduce_op);
}

// A place in the group named hcom. An A2 card has one communication domain for all of these ops of a model.
ReservedCall reserve(const Limits& limits, const std::string& hcom, bool alone_too) {
  static std::mutex mutex;
  static std::string domain;
  ReservedCall reserved;
  try {
    reserved = reserve_call(hcom);
  } catch (const std::invalid_argument& error) {
    limits.require(false, "hcom", error.what(), hcom);
  }
  const int size = reserved.communicator->world_size();
  limits.require(size == 2 || size == 4 || size == 8 || (alone_too && size == 1), "world_size",
                 alone_too ? "1, 2, 4 or 8" : "2, 4 or 8", std::to_string(size));
  const std::lock_guard lock(mutex);
  limits.require(domain.empty() || domain == hcom, "hcom", domain + ": a model has one communication domain", hcom);
  domain = hcom;
  return reserved;
}

void check_world_size(const Limits& limits, int64_t world_size, const ReservedCall& reserved) {
  limits.require(world_size == reserved.communicator->world_size(), "world_size",
                 "that of the group, " + std::to_string(reserved.communicator->world_size()),
                 std::to_string(world_size));
}

void require_zero(const Operand& bias) {
  if (bias.size == 0) return;
  for (const float each : bias.floats())
    if (each != 0) throw std::invalid_argument("bias must be zero or None, got another one");
}

Operand operand_of(const OptionalTensor& tensor) { return tensor ? Operand(*tensor) : Operand(); }

// 16-bit values in host memory, for what is sent.
struct Sent {
  Sent(int64_t size, DataType dtype) : bytes(size) {
    values.storage = bytes.data();
    values.dtype = dtype;
    values.size = size;
  }
  std::vector<uint16_t> bytes;
  Operand values;
};

DType sent_as(DataType dtype) { return dtype == DataType::FLOAT16 ? DType::kFloat16 : DType::kBfloat16; }

Call call_of(Op op, const Operand& sent, void* recv, int64_t count) {
  return {nullptr,      op,   sent_as(sent.dtype),          ReduceOp::kSum, 0,
          sent.storage, recv, static_cast<uint64_t>(count), nullptr};
}

// In a rehearsal: the call alone. Whether that is what was asked for.
bool is_rehearsed(const ReservedCall& reserved, Op op, const Operand& x1, int64_t count) {
  if (!Settings::get().rehearsing) return false;
  Call call = call_of(op, x1, nullptr, count);
  call.send = nullptr;
  reserved.run(call);
  return true;
}

// Each rank's product, rounded once, then the sum over ranks, in float32 and rounded once.
void multiply_and_reduce(const ReservedCall& reserved, Op op, const Operand& x1, const Operand& x2, const Operand& bias,
                         const Sizes& sizes, const Operand& to) {
  if (is_rehearsed(reserved, op, x1, to.size)) return;
  require_zero(bias);
  const Sent partial(sizes.m * sizes.n, x1.dtype);
  partial.values.store(product(x1.floats(), matrix(x2, false, sizes.k), sizes.k, sizes.n));
  reserved.run(call_of(op, partial.values, to.storage, to.size));
}

Tensors gather(const Tensor& x1, const Tensor& x2, const OptionalTensor& bias, const std::string& hcom,
               int64_t world_size, int64_t gather_index, bool gather_output, int64_t comm_turn) {
  const Limits limits(kGather);
  const Sizes sizes = check(limits, x1, x2, 2);
  check_depth(limits, sizes.k);
  check_turn(limits, comm_turn);
  limits.require(gather_index == 0, "gather_index", "0", std::to_string(gather_index));
  const ReservedCall reserved = reserve(limits, hcom, false);
  check_world_size(limits, world_size, reserved);
  const Tensors made{result(x1, {sizes.m * world_size, sizes.n}, x1.dtype()),
                     result(x1, gather_output ? Shape{sizes.m * world_size, sizes.k} : Shape{1}, x1.dtype())};
  launch_also_rehearsed(kGather, x1,
                        [=, x1 = Operand(x1), x2 = Operand(x2), bias = operand_of(bias), y = Operand(made[0]),
                         gathered = Operand(made[1])] {
                          if (is_rehearsed(reserved, Op::kAllGather, x1, x1.size)) return;
                          require_zero(bias);
                          const Sent all(sizes.m * sizes.k * world_size, x1.dtype);
                          reserved.run(call_of(Op::kAllGather, x1, all.values.storage, x1.size));
                          const std::vector<float> values = all.values.floats();
                          y.store(product(values, matrix(x2, false, sizes.k), sizes.k, sizes.n));
                          gather_output ? gathered.store(values) : gathered.store_nan();
                        });
  return made;
}

Tensors scatter(const Tensor& x1, const Tensor& x2, const OptionalTensor& bias, const std::string& hcom,
                int64_t world_size, const std::string& reduce_op, int64_t comm_turn) {
  const Limits limits(kScatter);
  const Sizes sizes = check(limits, x1, x2, 2);
  check_depth(limits, sizes.k);
  check_turn(limits, comm_turn);
  check_reduce(limits, reduce_op);
  const ReservedCall reserved = reserve(limits, hcom, false);
  check_world_size(limits, world_size, reserved);
  limits.require(sizes.m % world_size == 0, "M", "a multiple of world_size " + std::to_string(world_size),
                 std::to_string(sizes.m));
  const Tensor made = result(x1, {sizes.m / world_size, sizes.n}, x1.dtype());
  launch_also_rehearsed(kScatter, x1,
                        [=, x1 = Operand(x1), x2 = Operand(x2), bias = operand_of(bias), y = Operand(made)] {
                          multiply_and_reduce(reserved, Op::kReduceScatter, x1, x2, bias, sizes, y);
                        });
  return {made};
}

Tensors reduce(const Tensor& x1, const Tensor& x2, const OptionalTensor& bias, const std::string& hcom,
               const std::string& reduce_op, int64_t comm_turn) {
  const Limits limits(kReduce);
  const Sizes sizes = check(limits, x1, x2, 3);
  check_turn(limits, comm_turn);
  check_reduce(limits, reduce_op);
  const ReservedCall reserved = reserve(limits, hcom, true);
  Shape shape = x1.shape();
  shape.back() = sizes.n;
  const Tensor made = result(x1, shape, x1.dtype());
  launch_also_rehearsed(kReduce, x1,
                        [=, x1 = Operand(x1), x2 = Operand(x2), bias = operand_of(bias), y = Operand(made)] {
                          multiply_and_reduce(reserved, Op::kAllReduce, x1, x2, bias, sizes, y);
                        });
  return {made};
}

std::vector<Shape> gather_shapes(const Shape& x1, const Shape& x2, const OptionalShape&, const std::string&,
                                 int64_t world_size, int64_t, bool gather_output, int64_t) {
  return {{x1[0] * world_size, x2[1]}, gather_output ? Shape{x1[0] * world_size, x1[1]} : Shape{1}};
}
std::vector<DataType> gather_dtypes(const DataType& x1, const DataType&, const OptionalDataType&) { return {x1, x1}; }
std::vector<Shape> scatter_shapes(const Shape& x1, const Shape& x2, const OptionalShape&, const std::string&,
                                  int64_t world_size, const std::string&, int64_t) {
  return {{x1[0] / world_size, x2[1]}};
}
std::vector<Shape> reduce_shapes(const Shape& x1, const Shape& x2, const OptionalShape&, const std::string&,
                                 const std::string&, int64_t) {
  Shape shape = x1;
  shape.back() = x2[1];
  return {shape};
}
std::vector<DataType> dtypes(const DataType& x1, const DataType&, const OptionalDataType&) { return {x1}; }

const Vendor registered("npu", [] {
  paddle::OpMetaInfoBuilder(kGather, 0)
      .Inputs({"x1", "x2", paddle::Optional("bias")})
      .Outputs({"out_gather_mm", "out_gather"})
      .Attrs({"hcom: std::string", "world_size: int64_t", "gather_index: int64_t", "gather_output: bool",
              "comm_turn: int64_t"})
      .SetKernelFn(PD_KERNEL(gather))
      .SetInferShapeFn(PD_INFER_SHAPE(gather_shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(gather_dtypes));
  paddle::OpMetaInfoBuilder(kScatter, 0)
      .Inputs({"x1", "x2", paddle::Optional("bias")})
      .Outputs({"result"})
      .Attrs({"hcom: std::string", "world_size: int64_t", "reduce_op: std::string", "comm_turn: int64_t"})
      .SetKernelFn(PD_KERNEL(scatter))
      .SetInferShapeFn(PD_INFER_SHAPE(scatter_shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(dtypes));
  paddle::OpMetaInfoBuilder(kReduce, 0)
      .Inputs({"x1", "x2", paddle::Optional("bias")})
      .Outputs({"result"})
      .Attrs({"hcom: std::string", "reduce_op: std::string", "comm_turn: int64_t"})
      .SetKernelFn(PD_KERNEL(reduce))
      .SetInferShapeFn(PD_INFER_SHAPE(reduce_shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(dtypes));
});

}  // namespace
}  // namespace fusionkit_emulator::ops
