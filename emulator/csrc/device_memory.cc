#include "device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace fusionkit_emulator {
namespace {

constexpr size_t kAlignment = 4096;  // a page: freed storage goes back to the system in whole pages
// Twice the limit in addresses, so that fragments never fail an allocation that the accounting admits.
constexpr size_t kAddressesPerByte = 2;

char* reserve(size_t size, int protection) {
  void* range = mmap(nullptr, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED)
    throw std::runtime_error("emulator: " + std::to_string(size) + " bytes of addresses were refused (" +
                             std::strerror(errno) + "). Lower --memory");
  return static_cast<char*>(range);
}

size_t rounded(size_t size) { return std::max<size_t>((size + kAlignment - 1) / kAlignment, 1) * kAlignment; }

}  // namespace

DeviceMemory::DeviceMemory(int device, size_t limit, bool checked) : device_(device), limit_(limit) {
  reserved_ = rounded(limit) * kAddressesPerByte;
  storage_ = reserve(reserved_, PROT_READ | PROT_WRITE);
  base_ = checked ? reserve(reserved_, PROT_NONE) : storage_;
  free_[base_] = reserved_;
}

char* DeviceMemory::free_range(size_t size) {
  for (auto at = free_.begin(); at != free_.end(); ++at) {
    const auto [address, available] = *at;
    if (available < size) continue;
    free_.erase(at);
    if (available > size) free_[address + size] = available - size;
    return address;
  }
  return nullptr;
}

void* DeviceMemory::allocate(size_t size) {
  const std::lock_guard<std::mutex> lock(mutex_);
  size = rounded(size);
  if (in_use_ + size > limit_) return nullptr;
  char* address = free_range(size);
  if (address == nullptr) return nullptr;
  used_[address] = size;
  in_use_ += size;
  peak_ = std::max(peak_, in_use_);
  return address;
}

void DeviceMemory::deallocate(void* pointer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto at = used_.find(static_cast<char*>(pointer));
  if (at == used_.end()) throw std::invalid_argument("emulator: freed an address that was not allocated");
  auto [address, size] = *at;
  used_.erase(at);
  in_use_ -= size;
  madvise(storage_ + (address - base_), size, MADV_DONTNEED);
  tensors_.erase(tensors_.lower_bound(address), tensors_.lower_bound(address + size));
  const auto next = free_.lower_bound(address);
  if (next != free_.end() && address + size == next->first) {
    size += next->second;
    free_.erase(next);
  }
  const auto after = free_.lower_bound(address);
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == address) {
      before->second += size;
      return;
    }
  }
  free_[address] = size;
}

bool DeviceMemory::holds(const void* address) const {
  const auto* at = static_cast<const char*>(address);
  return at >= base_ && at < base_ + reserved_;
}

void* DeviceMemory::storage(const void* address) const {
  return storage_ + (static_cast<const char*>(address) - base_);
}

void DeviceMemory::name(const void* address, size_t size, const char* by, int dtype, bool is_kept) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto* begin = static_cast<const char*>(address);
  tensors_.erase(tensors_.lower_bound(begin), tensors_.lower_bound(begin + size));
  tensors_[begin] = {by, size, dtype, is_kept};
}

bool DeviceMemory::find(const void* address, Written* found, size_t* offset) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return find_locked(address, found, offset);
}

bool DeviceMemory::try_find(const void* address, Written* found, size_t* offset) const {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  return lock && find_locked(address, found, offset);
}

bool DeviceMemory::find_locked(const void* address, Written* found, size_t* offset) const {
  const auto* at = static_cast<const char*>(address);
  auto after = tensors_.upper_bound(at);
  if (after == tensors_.begin()) return false;
  --after;
  *offset = at - after->first;
  *found = after->second;
  return *offset < found->size;
}

size_t DeviceMemory::in_use() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return in_use_;
}

size_t DeviceMemory::peak() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return peak_;
}

}  // namespace fusionkit_emulator
