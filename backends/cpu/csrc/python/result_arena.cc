#include "result_arena.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace fusionkit_cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

thread_local ResultArena* entered = nullptr;

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

}  // namespace

ResultArena::ResultArena(size_t num_bytes) : size_(num_bytes) {
  const size_t allocated = round_up(num_bytes + 1, kHugePage);
  data_ = static_cast<char*>(std::aligned_alloc(kHugePage, allocated));
  if (data_ == nullptr) throw std::bad_alloc();
  madvise(data_, allocated, MADV_HUGEPAGE);  // a kernel without huge pages refuses, and small ones serve
  std::memset(data_, 0, allocated);
}

ResultArena::~ResultArena() { std::free(data_); }

void ResultArena::enter() {
  if (is_entered_) throw std::runtime_error("ResultArena: entered already. Leave it first, or use another");
  used_ = 0;
  is_entered_ = true;
  outer_ = entered;
  entered = this;
}

void ResultArena::leave() {
  is_entered_ = false;
  entered = outer_;
}

void* ResultArena::take(size_t num_bytes) {
  const size_t needed = round_up(num_bytes, kAlignment);
  if (needed > size_ - used_)
    throw std::runtime_error("ResultArena: num_bytes must be at least " + std::to_string(used_ + needed) +
                             " for the results so far, got " + std::to_string(size_) + ". Make a larger one");
  void* piece = data_ + used_;
  used_ += needed;
  return piece;
}

ResultArena* ResultArena::active() { return entered; }

}  // namespace fusionkit_cpu
