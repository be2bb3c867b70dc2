// Elements between two arrangements of the same shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fusionkit_emulator {

using Sizes = std::vector<int64_t>;

struct Strided {
  char* data;
  Sizes shape;
  Sizes strides;  // in elements
};

// One element after the other.
Strided contiguous(char* data, const Sizes& shape);

// Copies elements of `width` bytes between views of one shape.
void copy_strided(const Strided& from, const Strided& to, size_t width);

}  // namespace fusionkit_emulator
