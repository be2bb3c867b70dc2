// Memory traffic without arithmetic: the ceiling of the memory-bound kernels.
#include "stream.h"

#include "kernels/simd.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kLine = 64;
// Measured on two Zen 5 cores, 42 MB to 42 MB: turns of 128-512 bytes reach 47-50 GB/s, of 4-64 KiB 32-42; prefetching
// 2-16 KiB ahead adds up to 20%.
constexpr int64_t kTurn = 4 * kLine;
constexpr int64_t kAhead = 4096;
constexpr int64_t kTurnsPerShare = 256;  // 64 KiB: below this, waking a thread costs more than it saves

UintVec read(const char* begin, const char* end, UintVec seen) {
  for (; begin + kLine <= end; begin += kLine) {
    __builtin_prefetch(begin + kAhead);
    for (int64_t i = 0; i < kLine; i += sizeof seen) seen |= (UintVec)load(reinterpret_cast<const float*>(begin + i));
  }
  for (; begin < end; ++begin) seen |= static_cast<unsigned char>(*begin);
  return seen;
}

void write(char* begin, char* end, bool non_temporal) {
  const Vec ones = (Vec)(UintVec{} + 0x01010101u);
  for (; begin + kLine <= end; begin += kLine)
    for (int64_t i = 0; i < kLine; i += sizeof ones) {
      auto* to = reinterpret_cast<float*>(begin + i);
      if (non_temporal)
        store_non_temporal(to, ones);
      else
        store(to, ones);
    }
  for (; begin < end; ++begin) *begin = 1;
}

}  // namespace

void stream(const char* source, int64_t source_size, char* target, int64_t target_size, bool non_temporal) {
  const int64_t num_turns = ((source_size > target_size ? source_size : target_size) + kTurn - 1) / kTurn;
  // The bytes of `size` that come before this turn, in whole lines until the last.
  const auto before = [&](int64_t turn, int64_t size) {
    return turn == num_turns ? size : size / kLine * turn / num_turns * kLine;
  };
  parallel_for(num_turns, kTurnsPerShare, [&](int64_t begin, int64_t end, int) {
    UintVec seen{};
    int64_t num_read = before(begin, source_size), num_written = before(begin, target_size);
    for (int64_t turn = begin + 1; turn <= end; ++turn) {
      const int64_t to_read = before(turn, source_size), to_write = before(turn, target_size);
      seen = read(source + num_read, source + to_read, seen);
      write(target + num_written, target + to_write, non_temporal);
      num_read = to_read;
      num_written = to_write;
    }
    asm volatile("" : : "m"(seen));  // without a use the reads would be removed
    if (non_temporal) fence_non_temporal();
  });
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
