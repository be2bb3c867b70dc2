// How attention is shared out: scratch laid out per thread, and items taken by whichever thread is free. An item's
// result never depends on the thread that computes it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

// Hands out consecutive pieces of a block of memory, aligned to cache lines. From address 0 it only counts.
class Layout {
 public:
  explicit Layout(void* start) : start_(reinterpret_cast<uintptr_t>(start)), next_(start_) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  size_t size() const { return next_ - start_; }

 private:
  uintptr_t start_, next_;
};

// f(item, share), share < num_shares(num_items, 1).
template <class F>
void for_each_item(int64_t num_items, const F& f) {
  const int shares = num_shares(num_items, 1);
  int64_t next = 0;
  if (num_items == 0) return;
  parallel_for(shares, 1, [&](int64_t, int64_t, int share) {
    for (;;) {
      const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (item >= num_items) break;
      f(item, share);
    }
  });
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
