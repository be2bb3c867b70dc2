// What all ops of the CPU kernel library share; each op has a header of its own, beside this one. The library knows no
// framework, allocates no result and keeps no state but the thread count, the instruction set and what flush_caches
// reads.
//
// Every entry point checks its arguments and throws std::invalid_argument whose text reads
// "<op>: <argument> must be <rule>, got <value>". Storage is float32, bfloat16 or float16; arithmetic and accumulation
// are float32 (products of bfloat16 storage may use the bfloat16 units, which accumulate in float32), with one rounding
// at each output. Inputs may be strided; outputs are contiguous. A default-constructed Tensor stands for an absent one.
//
// Reductions have a fixed order for a given thread count, so equal calls give equal bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#pragma GCC visibility push(default)
namespace fusionkit_cpu {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16, kBool, kInt32, kInt64, kInt8 };

size_t dtype_size(DType dtype);
const char* dtype_name(DType dtype);

constexpr int kMaxDims = 8;

// A view of host memory. Strides count elements, may be 0 (broadcast) or negative.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int num_dims = 0;
  int64_t shape[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};
  bool present = false;  // an empty tensor is present and may have null data

  explicit operator bool() const { return present; }
};

// The target in use, by its name in backends/cpu/targets.py: the best that the processor has, unless FUSIONKIT_CPU_ISA
// names a lower one. An unknown name, or one that the processor lacks, throws.
const char* isa();
std::vector<std::string> available_isas();
void set_isa(const std::string& name);  // for tests; not safe while kernels run

// Threads used by each kernel: 1 until whoever loads the library says more.
int num_threads();
void set_num_threads(int n);

// Matrix products: "onednn" where load_onednn(path of libdnnl.so.3) returned true and the target is the processor's
// best and prefers it, else "blocked" (our own loop).
bool load_onednn(const std::string& path);
bool has_onednn();
const char* matmul_library();

}  // namespace fusionkit_cpu
#pragma GCC visibility pop
