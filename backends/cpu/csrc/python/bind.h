#pragma once

#include <pybind11/pybind11.h>

namespace fusionkit_cpu {

// Each function has the name and the argument order that fusionkit_cpu.h gives it, without the outputs.
void bind_machine(pybind11::module_& module);
void bind_elementwise(pybind11::module_& module);
void bind_attention(pybind11::module_& module);
void bind_products(pybind11::module_& module);
void bind_optimizer(pybind11::module_& module);

}  // namespace fusionkit_cpu
