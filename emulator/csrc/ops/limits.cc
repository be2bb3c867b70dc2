#include "ops/limits.h"

#include "device.h"
#include "error.h"
#include "paddle/phi/common/data_type.h"

namespace fusionkit_emulator::ops {

void Limits::refuse(const char* argument, const std::string& rule, const std::string& got) const {
  invalid_argument(std::string(op_) + ": " + argument + " must be " + rule + ", got " + got + " (emulated " +
                   Settings::get().device_type + ")");
}

void Limits::require(bool holds, const char* argument, const std::string& rule, const std::string& got) const {
  if (!holds) refuse(argument, rule, got);
}

void Limits::tensor(const char* argument, const Tensor& tensor) const {
  if (!tensor.defined() || !tensor.initialized()) refuse(argument, "a tensor", "none");
  require(tensor.place().GetType() == phi::AllocationType::CUSTOM, argument, "on the device",
          tensor.place().DebugString());
  require(tensor.is_contiguous(), argument, "contiguous (FLAGS_use_stride_kernel=0 keeps every tensor so)",
          "a strided view");
}

void Limits::dtype(const char* argument, const Tensor& tensor, std::initializer_list<DataType> allowed) const {
  std::string names;
  for (const DataType each : allowed) {
    if (each == tensor.dtype()) return;
    names += (names.empty() ? "" : " or ") + phi::DataTypeToString(each);
  }
  refuse(argument, names, phi::DataTypeToString(tensor.dtype()));
}

void Limits::same_dtype(const char* argument, const Tensor& tensor, const char* other, const Tensor& as) const {
  require(tensor.dtype() == as.dtype(), argument, phi::DataTypeToString(as.dtype()) + ", the dtype of " + other,
          phi::DataTypeToString(tensor.dtype()));
}

void Limits::num_dims(const char* argument, const Tensor& tensor, int wanted, const char* rule) const {
  require(tensor.dims().size() == wanted, argument, rule, shown(tensor.shape()));
}

void Limits::shape(const char* argument, const Tensor& tensor, const Shape& wanted, const char* rule) const {
  require(tensor.shape() == wanted, argument, std::string(rule) + " = " + shown(wanted), shown(tensor.shape()));
}

std::string shown(const Shape& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

}  // namespace fusionkit_emulator::ops
