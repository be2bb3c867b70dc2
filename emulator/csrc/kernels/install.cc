#include <stdexcept>

#include "device.h"
#include "kernels/adopted.h"
#include "kernels/dtype.h"
#include "kernels/registration.h"

namespace fusionkit_emulator::kernels {
namespace {

const phi::Kernel* cpu_kernel(const phi::KernelKeyMap& kernels, phi::DataType dtype) {
  for (const auto& [key, kernel] : kernels) {
    if (key.backend() == phi::Backend::CPU && key.layout() != phi::DataLayout::STRIDED && key.dtype() == dtype)
      return &kernel;
  }
  return nullptr;
}

std::string counts(const phi::KernelArgsDef& def) {
  return std::to_string(def.input_defs().size()) + " inputs, " + std::to_string(def.attribute_defs().size()) +
         " attributes, " + std::to_string(def.output_defs().size()) + " outputs";
}

// The typed functions are called through a cast: a signature that differs would read other registers.
void require_same(const char* name, const phi::KernelArgsDef& own, const phi::KernelArgsDef& cpu) {
  bool same = own.input_defs().size() == cpu.input_defs().size() &&
              own.output_defs().size() == cpu.output_defs().size() &&
              own.attribute_defs().size() == cpu.attribute_defs().size();
  for (size_t i = 0; same && i < own.input_defs().size(); ++i)
    same = own.input_defs()[i].type_index == cpu.input_defs()[i].type_index;
  for (size_t i = 0; same && i < own.attribute_defs().size(); ++i)
    same = own.attribute_defs()[i].type_index == cpu.attribute_defs()[i].type_index;
  if (!same)
    throw std::logic_error(std::string("Paddle's CPU kernel ") + name + " has another signature: " + counts(own) +
                           " here, " + counts(cpu) + " in Paddle");
}

// What Paddle is told about the arguments: tensors on the CPU become tensors on the device, and where the float64
// kernel follows its dtype, the 16-bit one does.
phi::KernelArgsDef on_device(const phi::Kernel& cpu, const phi::Kernel* wide, phi::DataType dtype) {
  phi::KernelArgsDef def = cpu.args_def();
  const phi::Backend backend = device_backend();
  for (auto& input : def.input_defs())
    if (input.backend == phi::Backend::CPU) input.SetBackend(backend);
  for (size_t i = 0; i < def.output_defs().size(); ++i) {
    auto& output = def.output_defs()[i];
    if (output.backend == phi::Backend::CPU) output.SetBackend(backend);
    const bool follows = wide == nullptr || i >= wide->args_def().output_defs().size() ||
                         wide->args_def().output_defs()[i].dtype == phi::DataType::FLOAT64;
    if (is_16_bit(dtype) && output.dtype == phi::DataType::FLOAT32 && follows) output.SetDataType(dtype);
  }
  return def;
}

}  // namespace

void install(const Adopted& kernel, const phi::KernelArgsDef& signature,
             const std::array<Functions, kDtypes.size()>& functions) {
  const char* name = kernel.name;
  const auto found = phi::KernelFactory::Instance().kernels().find(name);
  if (found == phi::KernelFactory::Instance().kernels().end())
    throw std::logic_error(std::string("Paddle has no CPU kernel ") + name);
  const phi::Kernel* wide = cpu_kernel(found->second, phi::DataType::FLOAT64);
  for (size_t i = 0; i < kDtypes.size(); ++i) {
    const phi::DataType dtype = kDtypes[i];
    const phi::Kernel* cpu = cpu_kernel(found->second, is_16_bit(dtype) ? phi::DataType::FLOAT32 : dtype);
    if (cpu == nullptr) continue;
    require_same(name, signature, cpu->args_def());
    // The factory's table may move its kernels when it grows.
    *functions[i].adopted = {name, dtype, new phi::Kernel(*cpu), kernel.draws, kernel.master};
    add_kernel(name, dtype, phi::Kernel(functions[i].untyped, functions[i].typed), on_device(*cpu, wide, dtype));
  }
}

}  // namespace fusionkit_emulator::kernels
