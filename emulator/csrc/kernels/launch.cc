#include <stdexcept>

#include "device.h"
#include "error.h"
#include "kernels/adopted.h"
#include "kernels/dtype.h"
#include "kernels/host_call.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "rehearsal/left_out.h"

namespace fusionkit_emulator::kernels {
namespace {

Stream& stream_of(phi::KernelContext& call) {
  return *static_cast<Stream*>(call.GetDeviceContext<phi::CustomContext>().stream());
}

void run(const Adopted& adopted, phi::KernelContext& call) {
  if (rehearsal::is_left_out(call)) return rehearsal::leave_out(adopted, call);
  if (Settings::get().rehearsing) rehearsal::note_small(adopted, call);
  const auto staged = std::make_shared<HostCall>(adopted, call);
  stream_of(call).enqueue([staged, name = adopted.name] {
    try {
      staged->run();
    } catch (const std::exception& error) {
      throw std::runtime_error(std::string(name) + ": " + error.what());
    }
  });
  if (!staged->must_wait()) return;
  try {
    stream_of(call).synchronize();
  } catch (const std::exception& error) {
    invalid_argument(error.what());
  }
  staged->take_late_outputs();
}

// The float32 master weights are what the CPU kernel updates; the 16-bit weights are their rounding.
void run_on_master_weights(const Adopted& adopted, phi::KernelContext& call) {
  auto& device = const_cast<phi::DeviceContext&>(call.GetDeviceContext<phi::DeviceContext>());
  phi::KernelContext wide(&device);
  for (int i = 0; i < static_cast<int>(call.InputsSize()); ++i) {
    const bool is_master = i == adopted.master.input;
    wide.EmplaceBackInput(is_master ? nullptr : call.MutableInputAt(i == 0 ? adopted.master.input : i));
  }
  for (int i = 0; i < static_cast<int>(call.OutputsSize()); ++i) {
    const bool is_master = i == adopted.master.output;
    wide.EmplaceBackOutput(is_master ? nullptr : call.MutableOutputAt(i == 0 ? adopted.master.output : i));
  }
  for (int i = 0; i < static_cast<int>(call.AttrsSize()); ++i)
    wide.EmplaceBackAttr(i == adopted.master.flag ? phi::Attribute(false) : call.AttrAt(i));
  const bool is_left_out = rehearsal::is_left_out(wide);
  run(adopted, wide);

  auto* weights = call.MutableOutputAt<phi::DenseTensor>(0);
  const void* from = storage_of(call.MutableOutputAt<phi::DenseTensor>(adopted.master.output)->data());
  void* to = storage_of(device.Alloc(weights, adopted.dtype));
  if (is_left_out) return rehearsal::wrote(device, *weights, adopted.name);
  stream_of(call).enqueue(
      [=, size = weights->numel(), dtype = adopted.dtype] { round(static_cast<const float*>(from), size, dtype, to); });
}

}  // namespace

void launch(const Adopted& adopted, phi::KernelContext* call) {
  const bool has_master = adopted.master.input >= 0 && call->MutableInputAt(adopted.master.input) != nullptr;
  has_master&& is_16_bit(adopted.dtype) ? run_on_master_weights(adopted, *call) : run(adopted, *call);
}

}  // namespace fusionkit_emulator::kernels
