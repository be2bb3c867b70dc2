#include <string>

#include "bind.h"
#include "peak.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

int64_t multiply_in_registers_of(const std::string& dtype, int64_t turns) {
  const bool in_pairs = dtype == dtype_name(DType::kBFloat16);
  if (!in_pairs && dtype != dtype_name(DType::kFloat32))
    throw py::value_error("multiply_in_registers: dtype must be float32 or bfloat16, got \"" + dtype + "\"");
  const py::gil_scoped_release release;
  return multiply_in_registers(in_pairs ? DType::kBFloat16 : DType::kFloat32, turns);
}

}  // namespace

FUSIONKIT_BIND(peak) {
  module.def("multiply_in_registers", &multiply_in_registers_of, "dtype"_a, "turns"_a,
             "For benchmarks: multiplies and adds without memory; -> FLOPs, 0 if the target cannot in this dtype.");
}

}  // namespace fusionkit_cpu
