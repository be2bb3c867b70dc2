// Scratch memory of one call, aligned for vectors. Not initialised.
#pragma once

#include <cstddef>

#include "fusionkit_cpu.h"

namespace fusionkit_cpu {

class Buffer {
 public:
  explicit Buffer(size_t num_bytes);  // throws std::bad_alloc
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <class T>
  [[gnu::always_inline]] inline T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

}  // namespace fusionkit_cpu
