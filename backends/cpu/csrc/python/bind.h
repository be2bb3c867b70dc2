// A file of this folder adds its functions to the module `_native`, and no list names the file:
//
//   FUSIONKIT_BIND(swiglu) { module.def("swiglu", &swiglu_array, "gate"_a, "up"_a, "-> y"); }
//
// Each function has the name and the argument order of the kernel library's, without the outputs.
// The files are compiled as one unit, so no two of them define one name.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace fusionkit_cpu {

using Binder = void (*)(pybind11::module_&);

// In no particular order: they are registered while the library is loaded.
std::vector<Binder>& binders();

struct Registration {
  explicit Registration(Binder binder) { binders().push_back(binder); }
};

}  // namespace fusionkit_cpu

#define FUSIONKIT_BIND(name)                                                  \
  static void bind_##name(pybind11::module_& module);                         \
  static const ::fusionkit_cpu::Registration registered_##name(&bind_##name); \
  static void bind_##name(pybind11::module_& module)
