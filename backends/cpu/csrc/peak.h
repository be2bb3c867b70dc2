#pragma once

#include "kernels/table.h"

// For benchmarks: the arithmetic that no product can outrun. Each of num_threads() threads multiplies and adds in
// registers alone, `turns` times all its chains, by the widest instructions that the target has for operands of this
// dtype: float32 or bfloat16. Returns the FLOPs of all threads; 0 where there are no such instructions.
FUSIONKIT_ENTRY_POINTS(int64_t multiply_in_registers(DType dtype, int64_t turns);)

FUSIONKIT_KERNELS(peak,
                  // On this thread.
                  int64_t multiply_in_registers(DType dtype, int64_t turns);)
