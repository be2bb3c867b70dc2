// Calls the kernel of a custom op with one input on the place "toy:0", whose memory faults when it is touched.
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "paddle/phi/api/ext/op_meta_info.h"
#include "paddle/phi/core/dense_tensor.h"

namespace {

constexpr size_t kNumBytes = 1 << 16;

paddle::Tensor tensor(void* data, const phi::Place& place, const std::string& name) {
  const auto dtype = name == "packed" ? phi::DataType::UINT8 : phi::DataType::FLOAT32;
  const std::vector<int64_t> shape(name == "labels" ? 3 : 4, 2);  // labels lack the last axis of x
  const phi::DenseTensorMeta meta(dtype, common::make_ddim(shape));
  const auto memory = std::make_shared<phi::Allocation>(data, kNumBytes, place);
  return paddle::Tensor(std::make_shared<phi::DenseTensor>(memory, meta));
}

}  // namespace

// How many inputs the op has.
extern "C" int num_inputs(const char* op) {
  return paddle::OpMetaInfoHelper::GetInputs(paddle::OpMetaInfoMap::Instance()[op][0]).size();
}

// Copies the error's text, or nothing if the kernel ran, into `text`.
extern "C" void run_with_device_input(const char* op, int on_device, char* text, size_t size) {
  static std::vector<float> host(kNumBytes / sizeof(float));
  void* device = mmap(nullptr, kNumBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const auto& info = paddle::OpMetaInfoMap::Instance()[op][0];
  const auto& names = paddle::OpMetaInfoHelper::GetInputs(info);
  paddle::CustomOpKernelContext context;
  for (size_t i = 0; i < names.size(); ++i) {
    if (static_cast<int>(i) == on_device)
      context.EmplaceBackInput(tensor(device, phi::CustomPlace("toy", 0), names[i]));
    else
      context.EmplaceBackInput(tensor(host.data(), phi::CPUPlace(), names[i]));
  }
  for (const std::string& attribute : paddle::OpMetaInfoHelper::GetAttrs(info)) {
    if (attribute.find("bool") != std::string::npos)
      context.EmplaceBackAttr(false);
    else if (attribute.find("float") != std::string::npos)
      context.EmplaceBackAttr(1.0f);
    else
      context.EmplaceBackAttr(int64_t{2});
  }
  text[0] = '\0';
  try {
    (*paddle::OpMetaInfoHelper::GetKernelFn(info))(&context);
  } catch (const std::exception& error) {
    std::strncpy(text, error.what(), size - 1);
  }
  munmap(device, kNumBytes);
}
