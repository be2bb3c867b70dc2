#include "host_view.h"

#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "freed_blocks.h"
#include "paddle/common/enforce.h"
#include "paddle/phi/api/include/api.h"
#include "paddle/phi/api/include/tensor_utils.h"

namespace fusionkit_paddle {

namespace {

[[noreturn]] void refuse(const char* op, const char* argument, const std::string& rule, const std::string& got) {
  throw std::invalid_argument(std::string(op) + ": " + argument + " must be " + rule + ", got " + got);
}

fusionkit_cpu::DType dtype_of(const char* op, const char* argument, const paddle::Tensor& tensor) {
  switch (tensor.dtype()) {
    case paddle::DataType::FLOAT32:
      return fusionkit_cpu::DType::kFloat32;
    case paddle::DataType::BFLOAT16:
      return fusionkit_cpu::DType::kBFloat16;
    case paddle::DataType::FLOAT16:
      return fusionkit_cpu::DType::kFloat16;
    case paddle::DataType::BOOL:
      return fusionkit_cpu::DType::kBool;
    case paddle::DataType::INT32:
      return fusionkit_cpu::DType::kInt32;
    case paddle::DataType::INT64:
      return fusionkit_cpu::DType::kInt64;
    case paddle::DataType::INT8:
      return fusionkit_cpu::DType::kInt8;
    default:
      refuse(op, argument, "float32, bfloat16, float16, bool, int32, int64 or int8",
             phi::DataTypeToString(tensor.dtype()));
  }
}

// The code gives Python its exception type; set_error_str its text, without Paddle's decoration, in dynamic mode.
[[noreturn]] void throw_paddle_error(const common::ErrorSummary& summary, const char* text) {
  common::enforce::EnforceNotMet error(summary, __FILE__, __LINE__);
  error.set_error_str(text);
  throw error;
}

}  // namespace

void HostView::require_host(const char* argument, const paddle::Tensor& tensor) const {
  if (!tensor.defined()) refuse(op_, argument, "a tensor", "None");
  const phi::AllocationType type = tensor.place().GetType();
  if (type == phi::AllocationType::CPU || type == phi::AllocationType::GPUPINNED) return;
  refuse(op_, argument, "in host memory",
         tensor.place().DebugString() +
             "; the pass that lowers this device-neutral op to the device's own op is missing. "
             "Load the program with the passes of the device's backend");
}

fusionkit_cpu::Tensor HostView::operator()(const char* argument, const paddle::Tensor& tensor) const {
  require_host(argument, tensor);
  fusionkit_cpu::Tensor view;
  view.dtype = dtype_of(op_, argument, tensor);
  view.num_dims = tensor.dims().size();
  if (view.num_dims > fusionkit_cpu::kMaxDims) {
    refuse(op_, argument, "of at most " + std::to_string(fusionkit_cpu::kMaxDims) + " dimensions",
           std::to_string(view.num_dims));
  }
  for (int i = 0; i < view.num_dims; ++i) {
    view.shape[i] = tensor.dims()[i];
    view.strides[i] = tensor.strides()[i];
  }
  view.data = tensor.numel() == 0 ? nullptr : const_cast<void*>(tensor.data());
  view.present = true;
  return view;
}

fusionkit_cpu::Tensor HostView::operator()(const char* argument, const OptionalTensor& tensor) const {
  return tensor ? (*this)(argument, *tensor) : fusionkit_cpu::Tensor();
}

fusionkit_cpu::Tensor HostView::merged(const char* argument, const paddle::Tensor& tensor, int num_dims) const {
  fusionkit_cpu::Tensor view = (*this)(argument, tensor);
  if (!tensor.is_contiguous()) refuse(op_, argument, "contiguous", "a strided view");
  const int num_merged = view.num_dims - num_dims + 1;
  if (num_merged < 0) return view;  // too few axes: the kernel says so
  Shape shape(view.shape, view.shape + view.num_dims);
  int64_t rows = 1;
  for (int i = 0; i < num_merged; ++i) rows *= shape[i];
  shape.erase(shape.begin(), shape.begin() + num_merged);
  shape.insert(shape.begin(), rows);
  view.num_dims = num_dims;
  int64_t stride = 1;
  for (int i = num_dims - 1; i >= 0; --i) {
    view.shape[i] = shape[i];
    view.strides[i] = stride;
    stride *= shape[i];
  }
  return view;
}

const void* HostView::bytes(const char* argument, const paddle::Tensor& tensor) const {
  require_host(argument, tensor);
  if (tensor.dtype() != paddle::DataType::UINT8 || !tensor.is_contiguous()) {
    refuse(op_, argument, "contiguous uint8", phi::DataTypeToString(tensor.dtype()));
  }
  return tensor.data();
}

Shape leading_axes(Shape shape) {
  if (!shape.empty()) shape.pop_back();
  return shape;
}

Shape with_last_axis(Shape shape, int64_t size) {
  if (!shape.empty()) shape.back() = size;
  return shape;
}

Shape product_shape(Shape x, const Shape& weight) {
  return weight.empty() ? x : with_last_axis(std::move(x), weight.back());
}

paddle::Tensor empty(const Shape& shape, paddle::DataType dtype) {
  size_t num_bytes = phi::SizeOf(dtype);
  for (const int64_t size : shape) num_bytes *= size;
  if (void* block = fusionkit_cpu::take_block(num_bytes)) {
    return paddle::from_blob(block, shape, dtype, phi::DataLayout::NCHW, phi::CPUPlace(), fusionkit_cpu::give_block);
  }
  return paddle::experimental::empty(shape, dtype, phi::CPUPlace());
}

paddle::Tensor empty_like(const paddle::Tensor& tensor) { return empty(tensor.shape(), tensor.dtype()); }

paddle::Tensor no_gradient(const paddle::Tensor& tensor) { return empty({0}, tensor.dtype()); }

paddle::Tensor or_zeros(const paddle::Tensor& gradient, const paddle::Tensor& output) {
  if (gradient.initialized()) return gradient;
  return paddle::experimental::full(output.shape(), 0, output.dtype(), phi::CPUPlace());
}

void refuse_second_derivative(const char* op) {
  throw std::invalid_argument(std::string(op) +
                              ": the cpu kernel is differentiable once; a gradient of its gradient was asked for. "
                              "Use fusionkit.use_backend(\"eager\") around the forward call");
}

void rethrow_as_paddle_error() {
  try {
    throw;
  } catch (const common::enforce::EnforceNotMet&) {
    throw;
  } catch (const std::invalid_argument& error) {
    throw_paddle_error(common::errors::InvalidArgument("%s", error.what()), error.what());
  } catch (const std::bad_alloc& error) {
    throw_paddle_error(common::errors::ResourceExhausted("%s", error.what()), error.what());
  } catch (const std::exception& error) {
    throw_paddle_error(common::errors::Fatal("%s", error.what()), error.what());
  }
}

}  // namespace fusionkit_paddle
