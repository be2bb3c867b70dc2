// A Paddle tensor's shape and strides over its storage.
#pragma once

#include "paddle/phi/core/dense_tensor.h"
#include "strides.h"

namespace fusionkit_emulator::kernels {

inline Strided strided(const phi::DenseTensor& tensor, void* storage) {
  return {static_cast<char*>(storage), common::vectorize(tensor.dims()), common::vectorize(tensor.strides())};
}

}  // namespace fusionkit_emulator::kernels
