// What the vendors' ops share: arguments as the device's kernels see them, results on the device, work on its stream.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "paddle/phi/api/ext/op_meta_info.h"

namespace fusionkit_emulator::ops {

using paddle::DataType;
using paddle::Tensor;
using Tensors = std::vector<Tensor>;
using OptionalTensor = paddle::optional<Tensor>;
using Shape = std::vector<int64_t>;
using OptionalShape = paddle::optional<Shape>;
using OptionalDataType = paddle::optional<DataType>;

// A tensor by its storage, for work on the stream: Paddle keeps the memory until the stream has passed.
struct Operand {
  void* storage = nullptr;
  DataType dtype = DataType::UNDEFINED;
  int64_t size = 0;

  Operand() = default;
  explicit Operand(const Tensor& tensor);

  std::vector<float> floats() const;            // of a floating tensor
  std::vector<int64_t> integers() const;        // of an int32 or int64 tensor
  std::unique_ptr<bool[]> bools() const;        // of a bool tensor
  void store(const std::vector<float>&) const;  // rounded once, to nearest even
  void store_nan() const;                       // what a contract does not say
  void store_zeros() const;                     // of any dtype
};

// A matrix as [out, in], whether it is stored so (transposed) or as [in, out].
std::vector<float> matrix(const Operand& operand, bool transposed, int64_t in);

// A result on the device of `beside`.
Tensor result(const Tensor& beside, const Shape& shape, DataType dtype);

// Runs `work` on the stream of the tensor's device, after this call; an exception gets the op's name.
// In a rehearsal nothing runs.
void launch(const char* op, const Tensor& on, std::function<void()> work);
// As launch, in a rehearsal too: for work that then has its own way.
void launch_also_rehearsed(const char* op, const Tensor& on, std::function<void()> work);

}  // namespace fusionkit_emulator::ops
