// Rows of a strided tensor as contiguous memory: in place when the last axis has unit stride, else gathered into a
// buffer of the thread.
#pragma once

#include "buffer.h"
#include "cache_size.h"
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

// Whether each row of a contiguous tensor begins at a cache line; true of an absent one.
inline bool begins_lines(const Tensor& tensor) {
  const int64_t row = tensor.num_dims > 0 ? tensor.shape[tensor.num_dims - 1] : 1;
  const uintptr_t row_size = static_cast<uintptr_t>(row) * (tensor.dtype == DType::kFloat32 ? 4 : 2);
  return !tensor || (reinterpret_cast<uintptr_t>(tensor.data) | row_size) % 64 == 0;
}

template <class T>
class RowReader {
 public:
  explicit RowReader(const Rows& rows) : rows_(rows), gathered_(rows.stride == 1 ? 0 : 2 * rows.size * sizeof(T)) {}

  // Valid until the next row but one is read.
  [[gnu::always_inline]] const T* operator()(int64_t row) const {
    const T* source = static_cast<const T*>(rows_.data) + row_offset(rows_, row);
    if (rows_.stride == 1) return source;
    T* target = gathered_.as<T>() + row % 2 * rows_.size;
    for (int64_t i = 0; i < rows_.size; ++i) target[i] = source[i * rows_.stride];
    return target;
  }

 private:
  const Rows& rows_;
  Buffer gathered_;
};

// How a loop over a row touches memory: whole vectors in the way of its call, then what is left once. The ways are
// types, so that whole vectors are loaded without a mask.
struct Ordinary {
  // Bytes between a load from memory and the prefetch beside it. The hardware's prefetchers stop at each page; measured
  // on Zen 5, 2-16 KiB are alike and up to 20% faster than none.
  static constexpr int64_t kAhead = 4096;
  static constexpr bool kKeepsResults = true;  // in the caches
  static constexpr bool kIsWhole = false;      // rows may end with part of a vector

  template <class T>
  [[gnu::always_inline]] Vec load(const T* p) const {
    return FUSIONKIT_ISA::load(p);
  }
  // For what is read once, from memory.
  template <class T>
  [[gnu::always_inline]] Vec fetch(const T* p) const {
    __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead);
    return FUSIONKIT_ISA::load(p);
  }
  template <class T>
  [[gnu::always_inline]] void store(T* p, Vec a) const {
    FUSIONKIT_ISA::store(p, a);
  }
  // For what is read again soon, whatever the way of results.
  template <class T>
  [[gnu::always_inline]] void keep(T* p, Vec a) const {
    FUSIONKIT_ISA::store(p, a);
  }
  void finish() const {}
};

// Results go past the caches. Rows are a multiple of a cache line, so whole vectors, and begin at one.
struct NonTemporal : Ordinary {
  static constexpr bool kKeepsResults = false;
  static constexpr bool kIsWhole = true;

  template <class T>
  [[gnu::always_inline]] void store(T* p, Vec a) const {
    store_non_temporal(p, a);
  }
  void finish() const { fence_non_temporal(); }
};

struct Partial {
  int64_t n;
  template <class T>
  [[gnu::always_inline]] Vec load(const T* p) const {
    return load_partial(p, n);
  }
  template <class T>
  [[gnu::always_inline]] Vec fetch(const T* p) const {
    return load_partial(p, n);
  }
  template <class T>
  [[gnu::always_inline]] void store(T* p, Vec a) const {
    store_partial(p, a, n);
  }
  template <class T>
  [[gnu::always_inline]] void keep(T* p, Vec a) const {
    store_partial(p, a, n);
  }
};

// f(i, lanes): lanes.load(p + i) and lanes.store(p + i, a) touch what the row has from i on, at most kLanes elements.
template <class Way, class F>
[[gnu::always_inline]] inline void for_each_vec(Way way, int64_t size, F f) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) f(i, way);
  if constexpr (!Way::kIsWhole)
    if (i < size) f(i, Partial{size - i});
}

template <class F>
[[gnu::always_inline]] inline void for_each_vec(int64_t size, F f) {
  for_each_vec(Ordinary{}, size, f);
}

// f(way) for a call that reads and writes num_bytes, with results whose rows all begin at cache lines or not.
template <class F>
inline void visit_way(int64_t num_bytes, bool on_lines, F f) {
  if (on_lines && exceeds_caches(num_bytes))
    f(NonTemporal{});
  else
    f(Ordinary{});
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
