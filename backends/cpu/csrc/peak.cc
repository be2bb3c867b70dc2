#include "peak.h"

#include <atomic>
#include <string>

#include "check.h"
#include "parallel.h"

namespace fusionkit_cpu {

int64_t multiply_in_registers(DType dtype, int64_t turns) {
  constexpr const char* kOp = "multiply_in_registers";
  if (dtype != DType::kFloat32 && dtype != DType::kBFloat16)
    fail(kOp, "dtype", "float32 or bfloat16", dtype_name(dtype));
  if (turns < 1) fail(kOp, "turns", "at least 1", std::to_string(turns));
  std::atomic<int64_t> flops{0};
  parallel_for(num_threads(), 1, [&](int64_t begin, int64_t end, int) {
    for (; begin < end; ++begin) flops += FUSIONKIT_DISPATCH(multiply_in_registers, dtype, turns);
  });
  return flops;
}

}  // namespace fusionkit_cpu
