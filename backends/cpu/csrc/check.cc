#include "check.h"

#include <stdexcept>

namespace fusionkit_cpu {

size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kBool:
    case DType::kInt8:
      return 1;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kInt64:
      return 8;
  }
  throw std::invalid_argument("dtype_size: dtype must be a DType, got " + std::to_string(static_cast<int>(dtype)));
}

const char* dtype_name(DType dtype) {
  static const char* const kNames[] = {"float32", "bfloat16", "float16", "bool", "int32", "int64", "int8"};
  const auto index = static_cast<size_t>(dtype);
  return index < sizeof kNames / sizeof *kNames ? kNames[index] : "unknown dtype";
}

bool is_floating(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

int64_t num_elements(const Tensor& tensor) {
  int64_t count = 1;
  for (int i = 0; i < tensor.num_dims; ++i) count *= tensor.shape[i];
  return count;
}

bool is_contiguous(const Tensor& tensor) {
  if (num_elements(tensor) == 0) return true;
  int64_t expected = 1;
  for (int i = tensor.num_dims - 1; i >= 0; --i) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

std::string shape_text(const int64_t* shape, int num_dims) {
  std::string text = "[";
  for (int i = 0; i < num_dims; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string describe(const Tensor& tensor) {
  if (!tensor) return "absent";
  return std::string(dtype_name(tensor.dtype)) + " " + shape_text(tensor.shape, tensor.num_dims);
}

void fail(const char* op, const char* argument, const std::string& rule, const std::string& got) {
  throw std::invalid_argument(std::string(op) + ": " + argument + " must be " + rule + ", got " + got);
}

void require_present(const char* op, const char* argument, const Tensor& tensor) {
  require(tensor.present, op, argument, "given", tensor);
  if (tensor.num_dims < 0 || tensor.num_dims > kMaxDims)
    fail(op, argument, "of at most " + std::to_string(kMaxDims) + " dimensions", std::to_string(tensor.num_dims));
  for (int i = 0; i < tensor.num_dims; ++i)
    require(tensor.shape[i] >= 0, op, argument, "of a shape without negative sizes", tensor);
  require(tensor.data != nullptr || num_elements(tensor) == 0, op, argument, "in host memory (data is null)", tensor);
}

void require_num_dims(const char* op, const char* argument, const Tensor& tensor, int num_dims) {
  require_present(op, argument, tensor);
  if (tensor.num_dims != num_dims)
    fail(op, argument, "of " + std::to_string(num_dims) + " dimensions", describe(tensor));
}

void require_floating(const char* op, const char* argument, const Tensor& tensor) {
  require_present(op, argument, tensor);
  require(is_floating(tensor.dtype), op, argument, "float32, bfloat16 or float16", tensor);
}

void require_dtype(const char* op, const char* argument, const Tensor& tensor, std::initializer_list<DType> allowed) {
  require_present(op, argument, tensor);
  std::string rule;
  for (DType dtype : allowed) {
    if (tensor.dtype == dtype) return;
    const std::string name = dtype_name(dtype);
    if (rule.find(name) == std::string::npos) rule += (rule.empty() ? "" : " or ") + name;
  }
  fail(op, argument, rule, describe(tensor));
}

void require_shape(const char* op, const char* argument, const Tensor& tensor, std::initializer_list<int64_t> shape) {
  require_present(op, argument, tensor);
  bool equal = tensor.num_dims == static_cast<int>(shape.size());
  for (int i = 0; equal && i < tensor.num_dims; ++i) equal = tensor.shape[i] == shape.begin()[i];
  if (!equal) fail(op, argument, shape_text(shape.begin(), static_cast<int>(shape.size())), describe(tensor));
}

void require_same_shape(const char* op, const char* argument, const Tensor& tensor, const char* other_name,
                        const Tensor& other) {
  require_present(op, argument, tensor);
  bool equal = tensor.num_dims == other.num_dims;
  for (int i = 0; equal && i < tensor.num_dims; ++i) equal = tensor.shape[i] == other.shape[i];
  if (!equal)
    fail(op, argument, std::string("of ") + other_name + "'s shape " + shape_text(other.shape, other.num_dims),
         describe(tensor));
}

void require_like(const char* op, const char* argument, const Tensor& tensor, const char* other_name,
                  const Tensor& other) {
  require_dtype(op, argument, tensor, {other.dtype});
  require_same_shape(op, argument, tensor, other_name, other);
}

void require_input(const char* op, const char* argument, const Tensor& tensor, std::initializer_list<DType> allowed,
                   std::initializer_list<int64_t> shape) {
  require_dtype(op, argument, tensor, allowed);
  require_shape(op, argument, tensor, shape);
}

void require_output(const char* op, const char* argument, const Tensor& tensor, DType dtype,
                    std::initializer_list<int64_t> shape) {
  require_input(op, argument, tensor, {dtype}, shape);
  require(is_contiguous(tensor), op, argument, "contiguous", tensor);
}

void require_output_like(const char* op, const char* argument, const Tensor& tensor, const char* other_name,
                         const Tensor& other) {
  require_dtype(op, argument, tensor, {other.dtype});
  require_same_shape(op, argument, tensor, other_name, other);
  require(is_contiguous(tensor), op, argument, "contiguous", tensor);
}

}  // namespace fusionkit_cpu
