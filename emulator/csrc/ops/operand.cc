#include "ops/operand.h"

#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "device.h"
#include "paddle/phi/backends/context_pool.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "paddle/phi/common/bfloat16.h"
#include "paddle/phi/common/float16.h"
#include "paddle/phi/core/dense_tensor.h"
#include "rehearsal/left_out.h"
#include "stream.h"

namespace fusionkit_emulator::ops {
namespace {

// Calls visit with a pointer of the C++ type of a floating dtype.
template <typename Visit>
void with_floating(const Operand& operand, Visit visit) {
  switch (operand.dtype) {
    case DataType::FLOAT32:
      return visit(static_cast<float*>(operand.storage));
    case DataType::BFLOAT16:
      return visit(static_cast<phi::dtype::bfloat16*>(operand.storage));
    case DataType::FLOAT16:
      return visit(static_cast<phi::dtype::float16*>(operand.storage));
    default:
      throw std::logic_error("a floating tensor was expected");
  }
}

}  // namespace

Operand::Operand(const Tensor& tensor)
    : storage(tensor.numel() == 0 ? nullptr : storage_of(tensor.data())), dtype(tensor.dtype()), size(tensor.numel()) {
  if (Settings::get().rehearsing) rehearsal::note_tensor(static_cast<const phi::DenseTensor&>(*tensor.impl()));
}

std::vector<float> Operand::floats() const {
  std::vector<float> values(size);
  with_floating(*this, [&](const auto* from) {
    for (int64_t i = 0; i < size; ++i) values[i] = static_cast<float>(from[i]);
  });
  return values;
}

std::vector<int64_t> Operand::integers() const {
  if (dtype == DataType::INT32) {
    const auto* from = static_cast<const int32_t*>(storage);
    return std::vector<int64_t>(from, from + size);
  }
  const auto* from = static_cast<const int64_t*>(storage);
  return std::vector<int64_t>(from, from + size);
}

std::unique_ptr<bool[]> Operand::bools() const {
  auto values = std::make_unique<bool[]>(size);
  if (size > 0) std::memcpy(values.get(), storage, size);
  return values;
}

void Operand::store(const std::vector<float>& values) const {
  with_floating(*this, [&](auto* to) {
    using Element = std::remove_pointer_t<decltype(to)>;
    for (int64_t i = 0; i < size; ++i) to[i] = static_cast<Element>(values[i]);
  });
}

void Operand::store_nan() const { store(std::vector<float>(size, std::numeric_limits<float>::quiet_NaN())); }

void Operand::store_zeros() const {
  if (size > 0) std::memset(storage, 0, size * phi::SizeOf(dtype));
}

std::vector<float> matrix(const Operand& operand, bool transposed, int64_t in) {
  std::vector<float> values = operand.floats();
  if (transposed) return values;
  const int64_t out = operand.size / in;
  std::vector<float> turned(values.size());
  for (int64_t i = 0; i < in; ++i)
    for (int64_t o = 0; o < out; ++o) turned[o * in + i] = values[i * out + o];
  return turned;
}

Tensor result(const Tensor& beside, const Shape& shape, DataType dtype) {
  auto made = std::make_shared<phi::DenseTensor>();
  made->Resize(common::make_ddim(shape));
  const phi::DeviceContext& context = *phi::DeviceContextPool::Instance().Get(beside.place());
  if (Settings::get().rehearsing) rehearsal::begin(context, "a vendor's op");
  context.Alloc(made.get(), dtype);
  if (Settings::get().rehearsing) {
    rehearsal::wrote(context, *made, "a vendor's op");
    rehearsal::note_result(*made);
  }
  return Tensor(made);
}

void launch(const char* op, const Tensor& on, std::function<void()> work) {
  if (!Settings::get().rehearsing) return launch_also_rehearsed(op, on, std::move(work));
  rehearsal::note_op(*phi::DeviceContextPool::Instance().Get(on.place()), op);
}

void launch_also_rehearsed(const char* op, const Tensor& on, std::function<void()> work) {
  const auto* context = static_cast<const phi::CustomContext*>(phi::DeviceContextPool::Instance().Get(on.place()));
  if (Settings::get().rehearsing) rehearsal::note_op(*context, op);
  static_cast<Stream*>(context->stream())->enqueue([op, work = std::move(work)] {
    try {
      work();
    } catch (const std::exception& error) {
      throw std::runtime_error(std::string(op) + ": " + error.what());
    }
  });
}

}  // namespace fusionkit_emulator::ops
