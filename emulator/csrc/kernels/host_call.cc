#include "kernels/host_call.h"

#include <cstring>
#include <stdexcept>
#include <utility>

#include "device.h"
#include "kernels/dtype.h"
#include "paddle/phi/backends/context_pool.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "paddle/phi/core/generator.h"

namespace fusionkit_emulator::kernels {
namespace {

const phi::CPUContext& shared_cpu_context() {
  return *static_cast<const phi::CPUContext*>(phi::DeviceContextPool::Instance().Get(phi::CPUPlace()));
}

// A gradient's input whose buffer it does not need has a shape and no data.
bool holds_data(const phi::DenseTensor& tensor) {
  return tensor.has_allocation() && tensor.Holder()->size() >= tensor.numel() * phi::SizeOf(tensor.dtype());
}

bool on_host(const phi::DenseTensor& tensor) {
  return tensor.has_allocation() && tensor.place().GetType() == phi::AllocationType::CPU;
}

}  // namespace

HostCall::HostCall(const Adopted& adopted, phi::KernelContext& call)
    : adopted_(adopted),
      device_(call.GetDeviceContext<phi::DeviceContext>()),
      cpu_(phi::CPUPlace()),
      host_(&cpu_),
      must_wait_(adopted.draws == Draws::kRandomNumbers) {
  const phi::CPUContext& shared = shared_cpu_context();
  cpu_.SetAllocator(&shared.GetAllocator());
  cpu_.SetHostAllocator(&shared.GetHostAllocator());
  cpu_.SetZeroAllocator(&shared.GetZeroAllocator());
  cpu_.SetHostZeroAllocator(&shared.GetHostZeroAllocator());
  // The device's generator, so that Paddle's saving and restoring of the device's state reaches the kernel.
  cpu_.SetGenerator(phi::DefaultCustomDeviceGenerator(device_.GetPlace()).get());
  cpu_.SetHostGenerator(cpu_.GetGenerator());
  for (size_t i = 0; i < call.InputsSize(); ++i)
    host_.EmplaceBackInputWithoutSetRange(stage_input(call.MutableInputAt(i)));
  for (size_t i = 0; i < call.OutputsSize(); ++i)
    host_.EmplaceBackOutputWithoutSetRange(stage_output(call.MutableOutputAt(i)));
  copy_ranges_and_attributes(call);
}

void HostCall::copy_ranges_and_attributes(phi::KernelContext& call) {
  for (size_t i = 0; i < adopted_.cpu->args_def().input_defs().size(); ++i)
    host_.AssignInputRange(std::pair<int, int>(call.InputRangeAt(i)), i);
  for (size_t i = 0; i < adopted_.cpu->args_def().output_defs().size(); ++i)
    host_.AssignOutputRange(std::pair<int, int>(call.OutputRangeAt(i)), i);
  for (size_t i = 0; i < call.AttrsSize(); ++i) {
    phi::Attribute attribute = call.AttrAt(i);
    const auto* dtype = paddle::get_if<phi::DataType>(&attribute);
    if (dtype != nullptr && is_16_bit(*dtype)) attribute = phi::DataType::FLOAT32;
    host_.EmplaceBackAttr(attribute);
  }
}

// Tensors that share memory on the device share it here: kernels ask, to work in place.
std::shared_ptr<phi::Allocation> HostCall::alias(void* storage, size_t size) {
  auto& made = aliases_[storage];
  if (made == nullptr || made->size() < size) made = std::make_shared<phi::Allocation>(storage, size, phi::CPUPlace());
  return made;
}

phi::DenseTensor* HostCall::new_tensor(const phi::DenseTensor& like, phi::DataType dtype) {
  tensors_.push_back(std::make_unique<phi::DenseTensor>());
  phi::DenseTensorMeta meta = like.meta();
  meta.dtype = dtype;
  meta.offset = 0;
  tensors_.back()->set_meta(meta);
  return tensors_.back().get();
}

phi::TensorBase* HostCall::stage_input(const phi::TensorBase* input) {
  if (input == nullptr) return nullptr;
  if (!phi::DenseTensor::classof(input))
    throw std::logic_error(std::string("emulator: ") + adopted_.name + " takes dense tensors only");
  const auto& tensor = *static_cast<const phi::DenseTensor*>(input);
  if (!tensor.meta().is_contiguous())
    throw std::logic_error(std::string("emulator: ") + adopted_.name + " was given a strided view");
  const bool narrow = is_16_bit(tensor.dtype());
  must_wait_ = must_wait_ || on_host(tensor);
  phi::DenseTensor* made = new_tensor(tensor, narrow ? phi::DataType::FLOAT32 : tensor.dtype());
  if (tensor.numel() == 0) {
    cpu_.Alloc(made, made->dtype());
  } else if (holds_data(tensor)) {
    void* storage = storage_of(tensor.data());
    if (narrow)
      widened_.push_back({storage, tensor.dtype(), made});
    else
      made->ResetHolder(alias(storage, tensor.numel() * phi::SizeOf(tensor.dtype())));
  }
  return made;
}

phi::TensorBase* HostCall::stage_output(phi::TensorBase* output) {
  if (output == nullptr) return nullptr;
  if (!phi::DenseTensor::classof(output))
    throw std::logic_error(std::string("emulator: ") + adopted_.name + " gives dense tensors only");
  auto* tensor = static_cast<phi::DenseTensor*>(output);
  const phi::DataType dtype = tensor->dtype() == phi::DataType::UNDEFINED ? adopted_.dtype : tensor->dtype();
  const bool narrow = is_16_bit(dtype), late = !tensor->meta().valid() || tensor->numel() < 0;
  phi::DenseTensor* made = new_tensor(*tensor, narrow ? phi::DataType::FLOAT32 : dtype);
  void* storage = nullptr;
  if (late) {
    must_wait_ = true;
  } else {
    must_wait_ = must_wait_ || on_host(*tensor);
    if (on_host(*tensor)) {
      storage = shared_cpu_context().Alloc(tensor, dtype);
    } else {
      storage = device_.Alloc(tensor, dtype);
      const size_t bytes = tensor->numel() * phi::SizeOf(dtype);
      if (bytes > 0) device(device_.GetPlace().GetDeviceId()).memory.name(storage, bytes, adopted_.name);
      storage = storage_of(storage);
    }
    if (!narrow && tensor->numel() > 0) made->ResetHolder(alias(storage, tensor->numel() * phi::SizeOf(dtype)));
  }
  outputs_.push_back({tensor, made, storage, dtype});
  return made;
}

void HostCall::run() {
  for (const Widened& each : widened_)
    widen(each.storage, each.dtype, each.on_host->numel(), cpu_.template Alloc<float>(each.on_host));
  (*adopted_.cpu)(&host_);
  for (const Output& output : outputs_)
    if (output.storage != nullptr) store(output, output.storage);
}

void HostCall::store(const Output& output, void* storage) const {
  const phi::DenseTensor& made = *output.on_host;
  if (!made.has_allocation() || made.numel() == 0) return;  // an output that this call leaves alone
  if (output.storage != nullptr && made.numel() != output.on_device->numel())
    throw std::logic_error(std::string("emulator: ") + adopted_.name + " gave another shape than Paddle inferred");
  if (is_16_bit(output.dtype)) return round(made.data<float>(), made.numel(), output.dtype, storage);
  if (made.dtype() != output.dtype)
    throw std::logic_error(std::string("emulator: ") + adopted_.name + " gave another dtype than Paddle inferred");
  // Where the kernel has taken another buffer than the one that it was given.
  if (made.data() != storage) std::memcpy(storage, made.data(), made.numel() * phi::SizeOf(output.dtype));
}

void HostCall::take_late_outputs() {
  for (Output& output : outputs_) {
    if (output.storage != nullptr || !output.on_host->has_allocation()) continue;
    output.on_device->Resize(output.on_host->dims());
    const phi::DataType made = output.on_host->dtype();
    if (!is_16_bit(output.dtype) || made != phi::DataType::FLOAT32) output.dtype = made;
    void* address = device_.Alloc(output.on_device, output.dtype);
    if (output.on_host->numel() > 0) store(output, storage_of(address));
  }
}

}  // namespace fusionkit_emulator::kernels
