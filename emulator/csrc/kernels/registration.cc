#include "kernels/registration.h"

#include "device.h"
#include "paddle/phi/core/compat/convert_utils.h"

namespace fusionkit_emulator::kernels {

phi::Backend device_backend() {
  static const phi::Backend backend = phi::TransToPhiBackend(phi::CustomPlace(Settings::get().device_type, 0));
  return backend;
}

void add_kernel(const char* name, phi::DataType dtype, phi::Kernel kernel, const phi::KernelArgsDef& arguments) {
  *kernel.mutable_args_def() = arguments;
  const phi::KernelKey key(device_backend(), phi::DataLayout::ALL_LAYOUT, dtype);
  phi::KernelFactory::Instance().kernels()[name][key] = kernel;
}

void register_all() {
  register_elementwise();
  register_reductions();
  register_movement();
  register_layers();
  register_optimizers();
  register_random();
  register_casts();
  register_views();
  register_lookups();
}

}  // namespace fusionkit_emulator::kernels
