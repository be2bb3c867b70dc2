// Rows of a strided tensor as contiguous memory: in place when the last axis has unit stride, else gathered into a
// buffer of the thread.
#pragma once

#include "buffer.h"
#include "kernels/simd.h"
#include "rows.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

inline int64_t row_offset(const Rows& rows, int64_t row) {
  if (rows.num_axes == 1) return row * rows.strides[0];
  int64_t offset = 0;
  for (int axis = rows.num_axes - 1; axis >= 0; --axis) {
    offset += row % rows.shape[axis] * rows.strides[axis];
    row /= rows.shape[axis];
  }
  return offset;
}

template <class T>
class RowReader {
 public:
  explicit RowReader(const Rows& rows) : rows_(rows), gathered_(rows.stride == 1 ? 0 : rows.size * sizeof(T)) {}

  // Valid until the next call.
  const T* operator()(int64_t row) const {
    const T* source = static_cast<const T*>(rows_.data) + row_offset(rows_, row);
    if (rows_.stride == 1) return source;
    T* target = gathered_.as<T>();
    for (int64_t i = 0; i < rows_.size; ++i) target[i] = source[i * rows_.stride];
    return target;
  }

 private:
  const Rows& rows_;
  Buffer gathered_;
};

// f(i, n, load, store) over a row in vectors: n = kLanes, then the rest once. The two modes are types, so that whole
// vectors are loaded without a mask.
struct Whole {
  template <class T>
  [[gnu::always_inline]] Vec load(const T* p) const {
    return FUSIONKIT_ISA::load(p);
  }
  template <class T>
  [[gnu::always_inline]] void store(T* p, Vec a) const {
    FUSIONKIT_ISA::store(p, a);
  }
};

struct Partial {
  int64_t n;
  template <class T>
  [[gnu::always_inline]] Vec load(const T* p) const {
    return load_partial(p, n);
  }
  template <class T>
  [[gnu::always_inline]] void store(T* p, Vec a) const {
    store_partial(p, a, n);
  }
};

// f(i, lanes): lanes.load(p + i) and lanes.store(p + i, a) touch what the row has from i on, at most kLanes elements.
template <class F>
[[gnu::always_inline]] inline void for_each_vec(int64_t size, F f) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) f(i, Whole{});
  if (i < size) f(i, Partial{size - i});
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
