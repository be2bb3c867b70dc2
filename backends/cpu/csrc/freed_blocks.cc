#include "freed_blocks.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

namespace fusionkit_cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

// Eight sizes for each power of two: results of nearly one size share blocks, at a cost of 12.5% at most.
size_t size_of_class(size_t num_bytes) {
  size_t power = kSmallestBlock;
  while (power <= num_bytes / 2) power *= 2;
  return round_up(num_bytes, power / 8);
}

// Begins at a huge page, and lies in huge ones where the system has them.
void* map(size_t size) {
  void* mapped = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  char* begin = static_cast<char*>(mapped);
  const size_t before = -reinterpret_cast<uintptr_t>(begin) % kHugePage;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + size, kHugePage - before);
  madvise(begin + before, size, MADV_HUGEPAGE);  // a kernel without them refuses, and small ones serve
  return begin + before;
}

class FreedBlocks {
 public:
  void* take(size_t num_bytes) {
    const size_t size = size_of_class(num_bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!on_) return nullptr;
    const auto fit = freed_.lower_bound(size);
    if (fit != freed_.end() && fit->first <= size + size / 4) {
      const size_t its_size = fit->first;
      return use(remove(fit), its_size);
    }
    make_room(size);
    return use(map(size), size);
  }

  void give(void* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = taken_.find(block);
    const size_t size = found->second;
    taken_.erase(found);
    bytes_.in_use -= size;
    if (on_) {
      freed_.insert({size, {block, ++turn_}});
      bytes_.freed += size;
    } else {
      munmap(block, size);
    }
  }

  void set_on(bool on) {
    const std::lock_guard<std::mutex> lock(mutex_);
    on_ = on;
    while (!on_ && !freed_.empty()) release_oldest();
  }

  BlockBytes bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

 private:
  struct Freed {
    void* block;
    uint64_t turn;
  };
  using Sizes = std::multimap<size_t, Freed>;

  void* remove(Sizes::iterator at) {
    void* block = at->second.block;
    bytes_.freed -= at->first;
    freed_.erase(at);
    return block;
  }

  void* use(void* block, size_t size) {
    taken_[block] = size;
    bytes_.in_use += size;
    bytes_.peak = std::max(bytes_.peak, bytes_.in_use);
    return block;
  }

  // The blocks that were freed first go back, until this one keeps what is held within the most ever used at once.
  void make_room(size_t size) {
    const size_t limit = std::max(bytes_.peak, bytes_.in_use + size);
    while (bytes_.in_use + bytes_.freed + size > limit) release_oldest();
  }

  void release_oldest() {
    const auto oldest = std::min_element(freed_.begin(), freed_.end(), [](const auto& one, const auto& other) {
      return one.second.turn < other.second.turn;
    });
    const size_t size = oldest->first;
    munmap(remove(oldest), size);
  }

  std::mutex mutex_;
  bool on_ = true;
  Sizes freed_;
  std::unordered_map<void*, size_t> taken_;
  BlockBytes bytes_{};
  uint64_t turn_ = 0;
};

// Never destroyed: tensors may be freed after this library's statics are.
FreedBlocks& blocks() {
  static FreedBlocks& all = *new FreedBlocks;
  return all;
}

}  // namespace

#pragma GCC visibility push(default)  // the modules over NumPy and over Paddle call these

void* take_block(size_t num_bytes) {
#ifdef __SANITIZE_ADDRESS__
  return nullptr;  // it has to see what lies past the last byte
#endif
  return num_bytes < kSmallestBlock ? nullptr : blocks().take(num_bytes);
}

void give_block(void* block) { blocks().give(block); }

void set_reuse_freed_blocks(bool on) { blocks().set_on(on); }

BlockBytes block_bytes() { return blocks().bytes(); }

#pragma GCC visibility pop

}  // namespace fusionkit_cpu
