#include "rehearsal/left_out.h"

#include <algorithm>
#include <string>
#include <vector>

#include "device.h"
#include "error.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "rehearsal/accounts.h"
#include "rehearsal/stand_in.h"
#include "rehearsal/trace.h"

namespace fusionkit_emulator::rehearsal {
namespace {

const phi::DenseTensor* dense(const phi::TensorBase* tensor) {
  if (tensor == nullptr || !phi::DenseTensor::classof(tensor)) return nullptr;
  return static_cast<const phi::DenseTensor*>(tensor);
}

bool has_shape(const phi::DenseTensor& tensor) { return tensor.meta().valid() && tensor.numel() >= 0; }

size_t bytes_of(const phi::DenseTensor& tensor, phi::DataType dtype) { return tensor.numel() * phi::SizeOf(dtype); }

bool is_small(const phi::DenseTensor* tensor) {
  if (tensor == nullptr || !has_shape(*tensor)) return true;
  const bool is_typed = tensor->dtype() != phi::DataType::UNDEFINED;
  return bytes_of(*tensor, is_typed ? tensor->dtype() : phi::DataType::FLOAT64) <= kSmall;
}

bool has_values(const phi::DenseTensor* tensor) {
  if (tensor == nullptr || tensor->numel() <= 0 || !tensor->has_allocation()) return true;
  if (tensor->Holder()->size() <= tensor->meta().offset) return true;
  return is_known(tensor->data(), bytes_of(*tensor, tensor->dtype()));
}

bool lies_on_host(const phi::DenseTensor& tensor) {
  return tensor.has_allocation() && tensor.place().GetType() == phi::AllocationType::CPU;
}

int id_of(const phi::DeviceContext& context) { return context.GetPlace().GetDeviceId(); }

const std::string no_line;

// Of a vendor's op of this thread, until it is launched.
struct Op {
  Caller from{&no_line};
  TracedTensors tensors;
  std::vector<const void*> results;
};
thread_local Op op_now;

const void* stream_of(const phi::DeviceContext& context) {
  return static_cast<const phi::CustomContext&>(context).stream();
}

void trace_call(const kernels::Adopted& adopted, phi::KernelContext& call, const Caller& from) {
  Trace* trace = Trace::get();
  if (trace == nullptr) return;
  thread_local TracedTensors tensors;
  tensors.clear();
  const auto add = [&](const phi::DenseTensor* tensor, bool is_output) {
    if (tensor == nullptr || !has_shape(*tensor)) return;
    const bool is_typed = tensor->dtype() != phi::DataType::UNDEFINED;
    add_tensor(tensors, *tensor, is_typed ? tensor->dtype() : adopted.dtype, is_output);
  };
  for (size_t i = 0; i < call.InputsSize(); ++i) add(dense(call.MutableInputAt(i)), false);
  for (size_t i = 0; i < call.OutputsSize(); ++i) add(dense(call.MutableOutputAt(i)), true);
  trace->kernel(adopted.name, from, tensors, stream_of(call.GetDeviceContext<phi::DeviceContext>()));
}

}  // namespace

bool is_left_out(phi::KernelContext& call) {
  if (!Settings::get().rehearsing) return false;
  for (size_t i = 0; i < call.InputsSize(); ++i) {
    const phi::DenseTensor* input = dense(call.MutableInputAt(i));
    if (!is_small(input) || !has_values(input)) return true;
  }
  for (size_t i = 0; i < call.OutputsSize(); ++i)
    if (!is_small(dense(call.MutableOutputAt(i)))) return true;
  return false;
}

void begin(const phi::DeviceContext& context, const char* kernel) {
  op_now.from = caller();
  accounts(id_of(context)).begin(kernel, op_now.from);
}

void note_small(const kernels::Adopted& adopted, phi::KernelContext& call) {
  trace_call(adopted, call, Caller{&no_line});
}

void note_result(const phi::DenseTensor& tensor) {
  if (Trace::get() != nullptr) op_now.results.push_back(tensor.data());
}

void note_tensor(const phi::DenseTensor& tensor) {
  if (Trace::get() == nullptr) return;
  const void* address = tensor.numel() > 0 ? tensor.data() : nullptr;
  const auto& results = op_now.results;
  const bool is_output = std::find(results.begin(), results.end(), address) != results.end();
  add_tensor(op_now.tensors, tensor, tensor.dtype(), is_output);
}

void note_op(const phi::DeviceContext& context, const char* op) {
  Trace* trace = Trace::get();
  if (trace == nullptr) return;
  trace->kernel(op, op_now.from, op_now.tensors, stream_of(context));
  op_now.tensors.clear();
  op_now.results.clear();
}

void wrote(const phi::DeviceContext& context, const phi::DenseTensor& output, const char* kernel) {
  Accounts& own = accounts(id_of(context));
  own.see(output);
  own.look();
  if (output.numel() <= 0) return;
  const phi::DataType dtype = output.dtype();
  const size_t bytes = bytes_of(output, dtype);
  const void* address = output.data();
  if (Device* owner = device_of(address)) owner->memory.name(address, bytes, kernel, static_cast<int>(dtype));
  if (bytes > kSmall || !output.meta().is_contiguous()) return;
  if (lies_on_host(output)) return stand_in(const_cast<void*>(address), dtype, bytes, kernel);
  const auto& custom = static_cast<const phi::CustomContext&>(context);
  static_cast<Stream*>(custom.stream())->enqueue([to = storage_of(address), dtype, bytes, kernel] {
    stand_in(to, dtype, bytes, kernel);
  });
}

bool leaves_out(const char* kernel, const phi::DeviceContext& context, const phi::DenseTensor& input,
                const phi::DenseTensor& output) {
  if (!Settings::get().rehearsing) return false;
  if (is_small(&input) && has_values(&input) && is_small(&output)) return false;
  begin(context, kernel);
  if (Trace* trace = Trace::get()) {
    TracedTensors tensors;
    add_tensor(tensors, input, input.dtype(), false);
    add_tensor(tensors, output, output.dtype(), true);
    trace->kernel(kernel, op_now.from, tensors, stream_of(context));
  }
  accounts(id_of(context)).see(input);
  wrote(context, output, kernel);
  return true;
}

void leave_out(const kernels::Adopted& adopted, phi::KernelContext& call) {
  const auto& context = call.GetDeviceContext<phi::DeviceContext>();
  begin(context, adopted.name);
  trace_call(adopted, call, op_now.from);
  for (size_t i = 0; i < call.InputsSize(); ++i)
    if (const phi::DenseTensor* input = dense(call.MutableInputAt(i))) accounts(id_of(context)).see(*input);
  for (size_t i = 0; i < call.OutputsSize(); ++i) {
    auto* output = const_cast<phi::DenseTensor*>(dense(call.MutableOutputAt(i)));
    if (output == nullptr) continue;
    const phi::DataType dtype = output->dtype() == phi::DataType::UNDEFINED ? adopted.dtype : output->dtype();
    if (!has_shape(*output))
      invalid_argument(std::string("rehearsal: the shape of ") + adopted.name +
                       "'s result depends on values, and nothing was computed. Leave the call out with "
                       "fusionkit.is_rehearsal(), or give the result a shape of its own");
    if (!lies_on_host(*output)) context.Alloc(output, dtype);
    wrote(context, *output, adopted.name);
  }
}

}  // namespace fusionkit_emulator::rehearsal
