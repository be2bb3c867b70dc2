// Paddle's CPU kernels as device kernels: on the storage behind the device's addresses, on the device's stream.
//
// Eager mode calls a kernel by a pointer of its C++ type, static graphs by a KernelContext. One shim serves both: it
// packs typed arguments into a KernelContext, and `launch` does the rest without knowing types.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "paddle/phi/backends/cpu/cpu_context.h"
#include "paddle/phi/core/dense_tensor.h"
#include "paddle/phi/core/kernel_context.h"
#include "paddle/phi/core/kernel_factory.h"
#include "paddle/phi/core/kernel_registry.h"

namespace fusionkit_emulator::kernels {

// What a kernel is registered for, in the order of Shim::adopted.
constexpr std::array kDtypes = {phi::DataType::BOOL,    phi::DataType::INT8,     phi::DataType::UINT8,
                                phi::DataType::INT16,   phi::DataType::INT32,    phi::DataType::INT64,
                                phi::DataType::FLOAT16, phi::DataType::BFLOAT16, phi::DataType::FLOAT32,
                                phi::DataType::FLOAT64};

enum class Draws { kNothing, kRandomNumbers };

// Where an optimizer's kernel takes and gives float32 master weights, and the attribute that says so.
struct MasterWeights {
  int input = -1, output = -1, flag = -1;
};

// A CPU kernel behind a device kernel. 16-bit dtypes have the float32 kernel: computed in float32, rounded once.
struct Adopted {
  const char* name = nullptr;
  phi::DataType dtype = phi::DataType::UNDEFINED;
  const phi::Kernel* cpu = nullptr;
  Draws draws = Draws::kNothing;
  MasterWeights master;
};

// Allocates the outputs and gives the CPU kernel to the stream; returns before it has run.
void launch(const Adopted& adopted, phi::KernelContext* call);

inline void pack(phi::KernelContext& call, const phi::DenseTensor& input) { call.EmplaceBackInput(&input); }
inline void pack(phi::KernelContext& call, const paddle::optional<phi::DenseTensor>& input) {
  call.EmplaceBackInput(input ? input.get_ptr() : nullptr);
}
inline void pack(phi::KernelContext& call, const std::vector<const phi::DenseTensor*>& inputs) {
  call.EmplaceBackInputs({inputs.begin(), inputs.end()});
}
inline void pack(phi::KernelContext& call, const std::vector<const phi::TensorBase*>& inputs) {
  call.EmplaceBackInputs({inputs.begin(), inputs.end()});
}
inline void pack(phi::KernelContext& call, phi::DenseTensor* output) { call.EmplaceBackOutput(output); }
inline void pack(phi::KernelContext& call, const std::vector<phi::DenseTensor*>& outputs) {
  call.EmplaceBackOutputs({outputs.begin(), outputs.end()});
}
template <typename Attribute>
void pack(phi::KernelContext& call, const Attribute& attribute) {
  call.EmplaceBackAttr(phi::Attribute(attribute));
}

// The C++ functions that Paddle calls for one CPU kernel, a pair for each dtype.
template <auto kernel, typename Function = decltype(kernel)>
struct Shim;

template <auto kernel, typename... Arguments>
struct Shim<kernel, void (*)(const phi::CPUContext&, Arguments...)> {
  static inline std::array<Adopted, kDtypes.size()> adopted;

  static void call(const Adopted& which, const phi::DeviceContext& context, Arguments... arguments) {
    phi::KernelContext packed(const_cast<phi::DeviceContext*>(&context));
    (pack(packed, arguments), ...);
    launch(which, &packed);
  }
  template <size_t Dtype>
  static void typed(const phi::DeviceContext& context, Arguments... arguments) {
    call(adopted[Dtype], context, arguments...);
  }
  template <size_t Dtype>
  static void untyped(phi::KernelContext* context) {
    launch(adopted[Dtype], context);
  }
};

// Registers device kernels for every dtype of `name`'s CPU kernels, and for 16-bit ones where there is a float32 one.
// Throws std::logic_error when Paddle has no such kernel, or one of another signature.
struct Functions {
  phi::KernelFn untyped;
  void* typed;
  Adopted* adopted;
};
void install(const Adopted& kernel, const phi::KernelArgsDef& signature,
             const std::array<Functions, kDtypes.size()>& functions);

template <auto kernel, size_t... Dtype>
void adopt(const Adopted& made, std::index_sequence<Dtype...>) {
  using Made = Shim<kernel>;
  phi::KernelArgsDef signature;
  phi::KernelArgsParseFunctor<decltype(kernel)>::Parse(phi::KernelKey(), &signature);
  install(made, signature,
          {Functions{&Made::template untyped<Dtype>, reinterpret_cast<void*>(&Made::template typed<Dtype>),
                     &Made::adopted[Dtype]}...});
}

template <auto kernel>
void adopt(const char* name, Draws draws = Draws::kNothing) {
  adopt<kernel>({name, phi::DataType::UNDEFINED, nullptr, draws, {}}, std::make_index_sequence<kDtypes.size()>());
}
template <auto kernel>
void adopt(const char* name, const MasterWeights& master) {
  adopt<kernel>({name, phi::DataType::UNDEFINED, nullptr, Draws::kNothing, master},
                std::make_index_sequence<kDtypes.size()>());
}

// FUSIONKIT_ADOPT(add, AddKernel): Paddle's kernel `add`, whose function is phi::AddKernel.
#define FUSIONKIT_ADOPT(name, Function, ...) \
  adopt<&phi::Function<float, phi::CPUContext>>(#name __VA_OPT__(, ) __VA_ARGS__)

}  // namespace fusionkit_emulator::kernels
