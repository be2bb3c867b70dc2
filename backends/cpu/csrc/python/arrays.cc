#include "arrays.h"

#include <cstdlib>
#include <new>
#include <stdexcept>

#include "freed_blocks.h"
#include "result_arena.h"

namespace py = pybind11;

namespace fusionkit_cpu {
namespace {

[[noreturn]] void refuse(const char* op, const char* argument, const std::string& rule, const std::string& got) {
  throw std::invalid_argument(std::string(op) + ": " + argument + " must be " + rule + ", got " + got);
}

// ml_dtypes registers its type at import, so the number is known only once an array of it has been seen.
bool is_bfloat16(const py::dtype& dtype) {
  static int number = -1;
  if (number < 0 && dtype.itemsize() == 2 && py::str(dtype.attr("name")).cast<std::string>() == "bfloat16")
    number = dtype.num();
  return number >= 0 && dtype.num() == number;
}

DType dtype_of(const char* op, const char* argument, const Array& array) {
  const py::dtype dtype = array.dtype();
  const char order = dtype.byteorder();
  if (order == '=' || order == '|') {
    switch (dtype.normalized_num()) {
      case py::detail::npy_api::NPY_FLOAT_:
        return DType::kFloat32;
      case py::detail::npy_api::NPY_INT32_:
        return DType::kInt32;
      case py::detail::npy_api::NPY_INT64_:
        return DType::kInt64;
      case py::detail::npy_api::NPY_BOOL_:
        return DType::kBool;
      case py::detail::npy_api::NPY_BYTE_:
        return DType::kInt8;
      case 23:  // NPY_HALF
        return DType::kFloat16;
    }
    if (is_bfloat16(dtype)) return DType::kBFloat16;
  }
  refuse(op, argument, "float32, bfloat16, float16, bool, int32, int64 or int8 in native byte order",
         py::str(dtype).cast<std::string>());
}

}  // namespace

Tensor view(const char* op, const char* argument, const Array& array) {
  Tensor tensor;
  tensor.present = true;
  tensor.dtype = dtype_of(op, argument, array);
  tensor.data = const_cast<void*>(array.data());
  if (array.ndim() > kMaxDims)
    refuse(op, argument, "of at most " + std::to_string(kMaxDims) + " dimensions", std::to_string(array.ndim()));
  tensor.num_dims = static_cast<int>(array.ndim());
  const auto itemsize = static_cast<int64_t>(array.itemsize());
  bool aligned = reinterpret_cast<uintptr_t>(tensor.data) % itemsize == 0;
  for (int i = 0; i < tensor.num_dims; ++i) {
    tensor.shape[i] = array.shape(i);
    if (tensor.shape[i] > 1) {
      aligned = aligned && array.strides(i) % itemsize == 0;
      tensor.strides[i] = array.strides(i) / itemsize;
    }
  }
  if (!aligned)
    refuse(op, argument, "aligned, with strides that are multiples of the item size", "an unaligned view. Copy it");
  return tensor;
}

Tensor view(const char* op, const char* argument, const OptionalArray& array) {
  return array ? view(op, argument, *array) : Tensor{};
}

Tensor writable_view(const char* op, const char* argument, const Array& array) {
  if (!array.writeable()) refuse(op, argument, "writable, as it is updated in place", "a read-only array");
  for (int i = 0; i < array.ndim(); ++i) {
    if (array.size() > 0 && array.shape(i) > 1 && array.strides(i) == 0)
      refuse(op, argument, "of elements that each have their own memory, as it is updated in place",
             "stride 0 along axis " + std::to_string(i) + ". Copy it");
  }
  return view(op, argument, array);
}

Array empty(const std::vector<int64_t>& shape, const py::dtype& dtype) {
  size_t num_bytes = static_cast<size_t>(dtype.itemsize());
  for (int64_t size : shape) num_bytes *= static_cast<size_t>(size);
  if (ResultArena* arena = ResultArena::active()) return Array(dtype, shape, arena->take(num_bytes), py::cast(arena));
  if (void* block = take_block(num_bytes)) return Array(dtype, shape, block, py::capsule(block, give_block));
  void* data = nullptr;  // not rounded up: a sanitizer then sees what lies past the last byte
  if (posix_memalign(&data, kAlignment, num_bytes > 0 ? num_bytes : 1) != 0) throw std::bad_alloc();
  const py::capsule owner(data, [](void* memory) { std::free(memory); });
  return Array(dtype, shape, data, owner);
}

Array empty_like(const Array& array) { return empty(shape_of(array), array.dtype()); }

Array empty_with_last(const Array& array, int64_t size) {
  std::vector<int64_t> shape = shape_of(array);
  if (!shape.empty()) shape.back() = size;
  return empty(shape, array.dtype());
}

Tensor result(const Array& array) { return view("result", "array", array); }

Tensor result(const OptionalArray& array) { return array ? result(*array) : Tensor{}; }

std::vector<int64_t> shape_of(const Array& array) { return {array.shape(), array.shape() + array.ndim()}; }

int64_t num_rows(const Array& array) {
  const int64_t size = axis_size(array, static_cast<int>(array.ndim()) - 1);
  return size > 0 ? array.size() / size : 0;
}

int64_t axis_size(const Array& array, int axis) { return axis < array.ndim() ? array.shape(axis) : 0; }

}  // namespace fusionkit_cpu
