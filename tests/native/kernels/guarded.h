// Tensors whose memory ends, or begins, at a page that faults: a kernel that reads or writes past them is stopped. The
// rest of their own pages holds a pattern that must survive.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "fusionkit_cpu.h"

namespace kernel_tests {

using fusionkit_cpu::DType;
using fusionkit_cpu::Tensor;
using Shape = std::vector<int64_t>;

enum class Edge { kEnd, kBegin };  // what touches the faulting page
inline thread_local Edge edge = Edge::kEnd;

class Guarded {
 public:
  // Filled with 0xff: NaN in every floating dtype, so that an element that no kernel writes is seen.
  Guarded(DType dtype, Shape shape, int64_t alignment = 1);
  Guarded(Guarded&& other);
  ~Guarded();  // ends the program when the pattern was written to

  double operator[](int64_t i) const;
  void set(int64_t i, double value);  // exact, or the program ends: tests choose values that every dtype holds
  int64_t size() const { return size_; }
  DType dtype() const { return dtype_; }
  int64_t dim(int axis) const { return shape_[axis]; }
  void* data() const { return data_; }

  Tensor view() const;
  operator Tensor() const { return view(); }

 private:
  void check_pattern() const;

  DType dtype_;
  Shape shape_;
  int64_t size_, element_bytes_, num_bytes_, pages_bytes_;
  unsigned char *mapping_, *pages_, *data_;
};

int64_t volume(const Shape& shape);

// Multiples of 1/64 in [-2, 2], which bfloat16 and float16 hold; the sequence starts anew in each case.
Guarded random(DType dtype, const Shape& shape);
Guarded filled(DType dtype, const Shape& shape, const std::function<double(int64_t)>& value);
void restart_random(uint64_t seed);
int64_t random_below(int64_t bound);

}  // namespace kernel_tests
