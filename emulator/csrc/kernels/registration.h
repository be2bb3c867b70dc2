// Registers device kernels with Paddle while the plugin is loaded.
#pragma once

#include <initializer_list>

#include "paddle/phi/core/kernel_factory.h"
#include "paddle/phi/core/kernel_registry.h"

namespace fusionkit_emulator::kernels {

// The emulated device type as Paddle's kernels are keyed.
phi::Backend device_backend();

void add_kernel(const char* name, phi::DataType dtype, phi::Kernel kernel, const phi::KernelArgsDef& arguments);

// A kernel of our own, for some dtypes.
template <auto kernel>
void add(const char* name, std::initializer_list<phi::DataType> dtypes) {
  using Implementation = phi::KernelImpl<decltype(kernel), kernel>;
  for (const phi::DataType dtype : dtypes) {
    phi::KernelArgsDef arguments;
    phi::KernelArgsParseFunctor<decltype(kernel)>::Parse(
        phi::KernelKey(device_backend(), phi::DataLayout::ALL_LAYOUT, dtype), &arguments);
    add_kernel(name, dtype, phi::Kernel(&Implementation::Compute, reinterpret_cast<void*>(kernel)), arguments);
  }
}

// One a file of kernels; `register_all` calls each.
void register_elementwise();
void register_reductions();
void register_movement();
void register_layers();
void register_optimizers();
void register_random();
void register_casts();
void register_views();
void register_lookups();

void register_all();

}  // namespace fusionkit_emulator::kernels
