#include "kernels/host_call.h"

#include <cstring>
#include <stdexcept>
#include <utility>

#include "device.h"
#include "error.h"
#include "kernels/dtype.h"
#include "kernels/tensor_strides.h"
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
  return tensor.has_allocation() && tensor.Holder()->size() > tensor.meta().offset;
}

bool on_host(const phi::DenseTensor& tensor) {
  return tensor.has_allocation() && tensor.place().GetType() == phi::AllocationType::CPU;
}

// Kernels ask a tensor without elements where it lies.
std::shared_ptr<phi::Allocation> no_elements() {
  static char nowhere;
  return std::make_shared<phi::Allocation>(&nowhere, 0, phi::CPUPlace());
}

// Static graphs give some attributes as tensors, which may be gone when the stream comes to the call: read now.
phi::Attribute resolved(const phi::Attribute& attribute, bool is_scalar) {
  if (const auto* tensors = paddle::get_if<std::vector<phi::TensorRef>>(&attribute)) return phi::IntArray(*tensors);
  const auto* tensor = paddle::get_if<phi::TensorRef>(&attribute);
  if (tensor == nullptr) return attribute;
  if (is_scalar) return phi::Scalar(*tensor->Get());
  return phi::IntArray(*tensor->Get());
}

const phi::DenseTensor& dense(const phi::TensorBase& tensor) {
  if (!phi::DenseTensor::classof(&tensor))
    invalid_argument("emulator: a device kernel takes and gives dense tensors only, not sparse ones or lists");
  return static_cast<const phi::DenseTensor&>(tensor);
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
    const bool is_scalar = adopted_.cpu->args_def().attribute_defs()[i].type_index == phi::AttributeType::SCALAR;
    host_.EmplaceBackAttr(resolved(attribute, is_scalar));
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
  if (meta.valid()) {  // else the kernel finds the shape
    meta.strides = phi::DenseTensorMeta::calc_strides(meta.dims);
    tensors_.back()->set_meta(meta);
  }
  return tensors_.back().get();
}

phi::TensorBase* HostCall::stage_input(const phi::TensorBase* input) {
  if (input == nullptr) return nullptr;
  const auto& tensor = dense(*input);
  const bool narrow = is_16_bit(tensor.dtype());
  must_wait_ = must_wait_ || on_host(tensor);
  phi::DenseTensor* made = new_tensor(tensor, narrow ? phi::DataType::FLOAT32 : tensor.dtype());
  if (tensor.numel() == 0) {
    made->ResetHolder(no_elements());
  } else if (holds_data(tensor)) {
    void* storage = storage_of(tensor.data());
    if (narrow || !tensor.meta().is_contiguous())
      copied_.push_back({strided(tensor, storage), tensor.dtype(), made});
    else
      made->ResetHolder(alias(storage, tensor.numel() * phi::SizeOf(tensor.dtype())));
  } else {
    // Kernels may ask for its address all the same (multiply_grad); what they would read there is NaN.
    std::memset(cpu_.Alloc(made, made->dtype()), 0xff, made->numel() * phi::SizeOf(made->dtype()));
  }
  return made;
}

phi::TensorBase* HostCall::stage_output(phi::TensorBase* output) {
  if (output == nullptr) return nullptr;
  auto& tensor = const_cast<phi::DenseTensor&>(dense(*output));
  const phi::DataType dtype = tensor.dtype() == phi::DataType::UNDEFINED ? adopted_.dtype : tensor.dtype();
  const bool narrow = is_16_bit(dtype);
  phi::DenseTensor* made = new_tensor(tensor, narrow ? phi::DataType::FLOAT32 : dtype);
  if (!tensor.meta().valid() || tensor.numel() < 0) {
    must_wait_ = true;
    outputs_.push_back({&tensor, made, {}, -1, dtype});
    return made;
  }
  must_wait_ = must_wait_ || on_host(tensor);
  void* address = on_host(tensor) ? tensor.data() : device_.Alloc(&tensor, dtype);
  const size_t bytes = tensor.numel() * phi::SizeOf(dtype);
  if (Device* owner = bytes > 0 ? device_of(address) : nullptr)
    owner->memory.name(address, bytes, adopted_.name, static_cast<int>(dtype));
  void* storage = storage_of(address);
  if (bytes == 0) made->ResetHolder(no_elements());
  if (!narrow && bytes > 0 && tensor.meta().is_contiguous()) made->ResetHolder(alias(storage, bytes));
  outputs_.push_back({&tensor, made, strided(tensor, storage), tensor.numel(), dtype});
  return made;
}

void HostCall::run() {
  for (const Copied& each : copied_) read(each);
  (*adopted_.cpu)(&host_);
  for (const Output& output : outputs_)
    if (output.to.data != nullptr) store(output);
}

void HostCall::read(const Copied& copied) {
  const size_t size = copied.on_host->numel(), width = phi::SizeOf(copied.dtype);
  std::vector<char> dense(size * width);
  copy_strided(copied.from, contiguous(dense.data(), copied.from.shape), width);
  void* to = cpu_.Alloc(copied.on_host, copied.on_host->dtype());
  if (is_16_bit(copied.dtype)) return widen(dense.data(), copied.dtype, size, static_cast<float*>(to));
  std::memcpy(to, dense.data(), dense.size());
}

void HostCall::store(const Output& output) const {
  const phi::DenseTensor& made = *output.on_host;
  if (!made.has_allocation() || made.numel() == 0) return;  // an output that this call leaves alone
  if (made.numel() != output.size) throw std::logic_error("the CPU kernel gave another shape than Paddle inferred");
  const bool narrow = is_16_bit(output.dtype);
  if (made.dtype() != (narrow ? phi::DataType::FLOAT32 : output.dtype))
    throw std::logic_error("the CPU kernel gave " + phi::DataTypeToString(made.dtype()) + " instead of " +
                           phi::DataTypeToString(output.dtype));
  if (made.data() == output.to.data) return;
  const size_t width = phi::SizeOf(output.dtype);
  std::vector<char> rounded(narrow ? output.size * width : 0);
  if (narrow) round(made.data<float>(), output.size, output.dtype, rounded.data());
  char* from = narrow ? rounded.data() : static_cast<char*>(const_cast<void*>(made.data()));
  copy_strided(contiguous(from, output.to.shape), output.to, width);
}

void HostCall::take_late_outputs() {
  for (Output& output : outputs_) {
    if (output.to.data != nullptr || !output.on_host->has_allocation()) continue;
    output.on_device->Resize(output.on_host->dims());
    const phi::DataType made = output.on_host->dtype();
    if (!is_16_bit(output.dtype) || made != phi::DataType::FLOAT32) output.dtype = made;
    output.size = output.on_host->numel();
    output.to = strided(*output.on_device, storage_of(device_.Alloc(output.on_device, output.dtype)));
    store(output);
  }
}

}  // namespace fusionkit_emulator::kernels
