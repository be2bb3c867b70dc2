// oneDNN primitives as values: owned, cached by shape, safe to run in several threads at once.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "matrix.h"
#include "onednn.h"

namespace fusionkit_cpu::onednn {

template <class T>
using Owned = std::unique_ptr<T, int (*)(T*)>;

// Throws std::runtime_error, naming the call, unless status is success.
void check(int status, const char* call);

// oneDNN takes the caller's OpenMP setting, which a framework may have set to 1. A child of fork() may have no threads
// but its own: the team that a loop of ours is given tells.
class ThreadCount {
 public:
  ThreadCount();
  ~ThreadCount();
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;
  int count() const { return count_; }

 private:
  int before_;
  int count_ = 1;
};

// A primitive that is ready to run, with the descriptions of its arguments.
class Operation {
 public:
  Operation(Owned<PrimitiveDesc> desc, std::vector<int> args, std::vector<Owned<MemoryDesc>> arg_descs);
  // `data` in the order of the arguments. Scratch memory belongs to the call.
  void run(std::initializer_list<const void*> data) const;

 private:
  Owned<PrimitiveDesc> desc_;
  std::vector<int> args_;
  std::vector<Owned<MemoryDesc>> arg_descs_;
  Owned<Primitive> primitive_;
  const MemoryDesc* scratchpad_;
};

// What an operation depends on: shapes, strides, dtypes and the number of threads; never addresses.
class Key {
 public:
  Key(char operation, const ThreadCount& threads) { add(operation).add(threads.count()); }
  Key& add(int64_t value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Key& add(const Matrix& m) {
    return add(static_cast<int64_t>(m.dtype)).add(m.rows).add(m.cols).add(m.row_stride).add(m.col_stride);
  }
  Key& add(const std::vector<uint8_t>& bytes) {
    add(static_cast<int64_t>(bytes.size()));
    text_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

std::shared_ptr<const Operation> cached(const Key& key,
                                        const std::function<std::shared_ptr<const Operation>()>& create);

}  // namespace fusionkit_cpu::onednn
