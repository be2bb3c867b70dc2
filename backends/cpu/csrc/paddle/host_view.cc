#include "host_view.h"

#include <new>
#include <stdexcept>
#include <string>

#include "paddle/common/enforce.h"
#include "paddle/phi/api/include/api.h"

namespace fusionkit_paddle {

namespace {

fusionkit_cpu::DType dtype_of(const std::string& where, const paddle::Tensor& tensor) {
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
    default:
      throw std::invalid_argument(where + " must be float32, bfloat16, float16, bool, int32 or int64, got " +
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
  if (!tensor.defined()) {
    throw std::invalid_argument(std::string(op_) + ": " + argument + " must be a tensor, got None");
  }
  const phi::AllocationType type = tensor.place().GetType();
  if (type != phi::AllocationType::CPU && type != phi::AllocationType::GPUPINNED) {
    throw std::invalid_argument(std::string(op_) + ": " + argument + " must be in host memory, got " +
                                tensor.place().DebugString() +
                                "; the pass that lowers this device-neutral op to the device's own op is missing. "
                                "Load the program with the passes of the device's backend");
  }
}

fusionkit_cpu::Tensor HostView::operator()(const char* argument, const paddle::Tensor& tensor) const {
  require_host(argument, tensor);
  const std::string where = std::string(op_) + ": " + argument;
  fusionkit_cpu::Tensor view;
  view.dtype = dtype_of(where, tensor);
  view.num_dims = tensor.dims().size();
  if (view.num_dims > fusionkit_cpu::kMaxDims) {
    throw std::invalid_argument(where + " must be of at most " + std::to_string(fusionkit_cpu::kMaxDims) +
                                " dimensions, got " + std::to_string(view.num_dims));
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

const void* HostView::bytes(const char* argument, const paddle::Tensor& tensor) const {
  require_host(argument, tensor);
  if (tensor.dtype() != paddle::DataType::UINT8 || !tensor.is_contiguous()) {
    throw std::invalid_argument(std::string(op_) + ": " + argument + " must be contiguous uint8, got " +
                                phi::DataTypeToString(tensor.dtype()));
  }
  return tensor.data();
}

Shape leading_axes(Shape shape) {
  if (!shape.empty()) shape.pop_back();
  return shape;
}

fusionkit_cpu::Tensor merge_leading(fusionkit_cpu::Tensor tensor, int num_dims) {
  const int num_leading = tensor.num_dims - num_dims + 1;
  if (num_leading < 0) return tensor;  // too few axes: the kernel says so
  fusionkit_cpu::Tensor merged = tensor;
  merged.num_dims = num_dims;
  merged.shape[0] = 1;
  for (int i = 0; i < num_leading; ++i) merged.shape[0] *= tensor.shape[i];
  for (int i = 1; i < num_dims; ++i) merged.shape[i] = tensor.shape[num_leading + i - 1];
  int64_t stride = 1;
  for (int i = num_dims - 1; i >= 0; --i) {
    merged.strides[i] = stride;
    stride *= merged.shape[i];
  }
  return merged;
}

paddle::Tensor empty(const Shape& shape, paddle::DataType dtype) {
  return paddle::experimental::empty(shape, dtype, phi::CPUPlace());
}

paddle::Tensor empty_like(const paddle::Tensor& tensor) { return empty(tensor.shape(), tensor.dtype()); }

paddle::Tensor no_gradient(const paddle::Tensor& tensor) { return empty({0}, tensor.dtype()); }

paddle::Tensor or_zeros(const paddle::Tensor& gradient, const paddle::Tensor& output) {
  if (gradient.initialized()) return gradient;
  return paddle::experimental::full(output.shape(), 0, output.dtype(), phi::CPUPlace());
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
