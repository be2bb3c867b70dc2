#include "strides.h"

#include <cstring>

namespace fusionkit_emulator {
namespace {

void copy_axis(size_t axis, const Strided& from, const Strided& to, int64_t from_at, int64_t to_at, size_t width) {
  const Sizes& shape = to.shape;
  const bool dense =
      axis < shape.size() && axis + 1 == shape.size() && from.strides[axis] == 1 && to.strides[axis] == 1;
  if (axis == shape.size() || dense) {
    const int64_t count = dense ? shape[axis] : 1;
    std::memcpy(to.data + to_at * width, from.data + from_at * width, count * width);
    return;
  }
  for (int64_t i = 0; i < shape[axis]; ++i)
    copy_axis(axis + 1, from, to, from_at + i * from.strides[axis], to_at + i * to.strides[axis], width);
}

}  // namespace

Strided contiguous(char* data, const Sizes& shape) {
  Sizes strides(shape.size(), 1);
  for (size_t axis = shape.size(); axis-- > 1;) strides[axis - 1] = strides[axis] * shape[axis];
  return {data, shape, strides};
}

void copy_strided(const Strided& from, const Strided& to, size_t width) { copy_axis(0, from, to, 0, 0, width); }

}  // namespace fusionkit_emulator
