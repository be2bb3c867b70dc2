// A tensor seen as rows along its last axis.
#pragma once

#include <cstdint>

#include "fusionkit_cpu.h"

namespace fusionkit_cpu {

// Outer axes are merged where their strides allow; most tensors keep one.
struct Rows {
  void* data;
  int64_t count;   // rows
  int64_t size;    // elements of a row
  int64_t stride;  // between the elements of a row
  int num_axes;
  int64_t shape[kMaxDims];  // of the outer axes, the outermost first
  int64_t strides[kMaxDims];
};

Rows rows_of(const Tensor& tensor);  // a tensor without axes is one row of one element

}  // namespace fusionkit_cpu
