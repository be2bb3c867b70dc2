// What is read where nothing was computed.
#pragma once

#include <cstddef>
#include <string>

#include "paddle/phi/common/data_type.h"

namespace fusionkit_emulator::rehearsal {

// Kernels whose tensors all have at most so many bytes do compute, and such tensors are moved: steps are counted and
// rates decay by them, and a page is the least that memory is taken in.
constexpr size_t kSmall = 4096;

// What the host gives is moved up to this size: batches of ids.
constexpr size_t kKept = 1 << 20;

// Whether the bytes at an address are what the program would have there: host memory, a small tensor's, or what the
// host gave.
bool is_known(const void* address, size_t bytes);
// Of the tensor at an address; UNDEFINED where that is not known.
phi::DataType dtype_at(const void* address);

// Every number is 1. Flags are false, as if no fault were found, but of `by` all, isfinite and comparisons of
// closeness. Bytes of an unknown dtype are 0.
void stand_in(void* storage, phi::DataType dtype, size_t bytes, const std::string& by);

// One copy with a stand-in for what is not known. Large device tensors stay untouched.
void copy(void* to, const void* from, size_t bytes);

}  // namespace fusionkit_emulator::rehearsal
