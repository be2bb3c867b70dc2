// One call of a CPU kernel on device tensors.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "kernels/adopted.h"
#include "strides.h"

namespace fusionkit_emulator::kernels {

// Made on the calling thread, which allocates the outputs; run on the stream.
class HostCall {
 public:
  HostCall(const Adopted& adopted, phi::KernelContext& call);

  void run();
  // After run, on the calling thread: outputs whose shape only the kernel knows.
  void take_late_outputs();
  // Whether the caller has to wait: a tensor lies on the host, or an output's shape depends on data.
  bool must_wait() const { return must_wait_; }

 private:
  struct Output {
    phi::DenseTensor* on_device;  // the caller's: not for the stream
    phi::DenseTensor* on_host;
    Strided to;  // without data: allocated late
    int64_t size;
    phi::DataType dtype;
  };
  // An input that the kernel cannot read where it lies: 16-bit, or a strided view.
  struct Copied {
    Strided from;
    phi::DataType dtype;
    phi::DenseTensor* on_host;
  };

  phi::TensorBase* stage_input(const phi::TensorBase* input);
  phi::TensorBase* stage_output(phi::TensorBase* output);
  void copy_ranges_and_attributes(phi::KernelContext& call);
  std::shared_ptr<phi::Allocation> alias(void* storage, size_t size);
  phi::DenseTensor* new_tensor(const phi::DenseTensor& like, phi::DataType dtype);
  void read(const Copied& copied);
  void store(const Output& output) const;

  const Adopted& adopted_;
  const phi::DeviceContext& device_;
  phi::CPUContext cpu_;
  phi::KernelContext host_;
  bool must_wait_ = false;
  std::vector<std::unique_ptr<phi::DenseTensor>> tensors_;
  std::map<void*, std::shared_ptr<phi::Allocation>> aliases_;
  std::vector<Copied> copied_;
  std::vector<Output> outputs_;
};

}  // namespace fusionkit_emulator::kernels
