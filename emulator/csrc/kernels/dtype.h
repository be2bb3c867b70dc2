// The floating dtypes as C++ types.
#pragma once

#include "paddle/phi/common/bfloat16.h"
#include "paddle/phi/common/data_type.h"
#include "paddle/phi/common/float16.h"

namespace fusionkit_emulator::kernels {

inline bool is_16_bit(phi::DataType dtype) {
  return dtype == phi::DataType::FLOAT16 || dtype == phi::DataType::BFLOAT16;
}

// float32 from a 16-bit dtype, and back, rounded to nearest even.
void widen(const void* from, phi::DataType dtype, int64_t size, float* to);
void round(const float* from, int64_t size, phi::DataType dtype, void* to);

}  // namespace fusionkit_emulator::kernels
