// NumPy arrays as tensors of the kernel library: views without copies, and new arrays for results.
#pragma once

#include <pybind11/numpy.h>

#include <optional>
#include <string>
#include <vector>

#include "fusionkit_cpu.h"

namespace fusionkit_cpu {

using Array = pybind11::array;
using OptionalArray = std::optional<Array>;

// bfloat16 is ml_dtypes.bfloat16. Throws std::invalid_argument in the name of the op and argument.
Tensor view(const char* op, const char* argument, const Array& array);
Tensor view(const char* op, const char* argument, const OptionalArray& array);  // absent for None
Tensor writable_view(const char* op, const char* argument, const Array& array);

// Contiguous, aligned to 64 bytes, not initialised.
Array empty(const std::vector<int64_t>& shape, const pybind11::dtype& dtype);
Array empty_like(const Array& array);
Array empty_with_last(const Array& array, int64_t size);  // its shape with the last axis replaced
Tensor result(const Array& array);                        // a view of one of these
Tensor result(const OptionalArray& array);                // absent for None

std::vector<int64_t> shape_of(const Array& array);
int64_t num_rows(const Array& array);             // along the last axis
int64_t axis_size(const Array& array, int axis);  // 0 where there is no such axis: the op's own check names the fault

// Call{kernel, arguments...} runs the kernel without the interpreter's lock. Braces evaluate from left to right: of
// several arguments that are wrong the first is named, and inputs come before results made like them.
struct Call {
  template <class... Parameters, class... Arguments>
  Call(void (*kernel)(Parameters...), const Arguments&... arguments) {
    const pybind11::gil_scoped_release release;
    kernel(arguments...);
  }
};

}  // namespace fusionkit_cpu
