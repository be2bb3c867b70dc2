// Device memory: addresses that fault when the host touches them, and the storage behind them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace fusionkit_emulator {

// What a device address belongs to, for messages.
struct Written {
  const char* by;  // a kernel's name; lives for ever
  size_t size;
  int dtype = 0;         // a phi::DataType; 0 where it is not known
  bool is_kept = false;  // in a rehearsal: its values are there, though it is large
};

// The memory of one device: a range of addresses without access, and storage at a constant distance from it.
//
// Paddle sees addresses of the first; kernels and copies run on the second. Nothing is committed until it is touched.
class DeviceMemory {
 public:
  DeviceMemory(int device, size_t limit, bool checked);
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // A device address, or null when `size` bytes more would pass the limit.
  void* allocate(size_t size);
  void deallocate(void* address);

  bool holds(const void* address) const;
  void* storage(const void* address) const;

  // What lies at an address, as far as it is known: for the message of a fault.
  void name(const void* address, size_t size, const char* by, int dtype = 0, bool is_kept = false);
  bool find(const void* address, Written* found, size_t* offset) const;
  // The same, for a signal handler, which cannot wait for another thread.
  bool try_find(const void* address, Written* found, size_t* offset) const;

  size_t limit() const { return limit_; }
  size_t in_use() const;
  size_t peak() const;

 private:
  char* free_range(size_t size);
  bool find_locked(const void* address, Written* found, size_t* offset) const;

  const int device_;
  const size_t limit_;
  size_t reserved_ = 0;
  char* base_ = nullptr;     // device addresses begin here
  char* storage_ = nullptr;  // and their bytes here
  size_t in_use_ = 0, peak_ = 0;
  std::map<char*, size_t> free_, used_;  // address -> bytes
  std::map<const char*, Written> tensors_;
  mutable std::mutex mutex_;
};

}  // namespace fusionkit_emulator
