// Element types, their sizes and names. The order is that of Paddle's C_DataType, which begins with UNDEFINED.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusionkit_parallel {

enum class DType : int32_t {
  kBool,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kFloat16,
  kFloat32,
  kFloat64,
  kBfloat16,
  kComplex64,
  kComplex128,
};
constexpr int kNumDTypes = 15;

inline size_t size_of(DType dtype) {
  constexpr size_t sizes[kNumDTypes] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 2, 8, 16};
  return sizes[static_cast<int>(dtype)];
}

inline const char* name_of(DType dtype) {
  constexpr const char* names[kNumDTypes] = {"bool",    "uint8",   "uint16",   "uint32",    "uint64",
                                             "int8",    "int16",   "int32",    "int64",     "float16",
                                             "float32", "float64", "bfloat16", "complex64", "complex128"};
  return names[static_cast<int>(dtype)];
}

}  // namespace fusionkit_parallel
