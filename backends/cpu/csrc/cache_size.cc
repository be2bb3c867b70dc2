#include "cache_size.h"

#include <fstream>
#include <string>

namespace fusionkit_cpu {
namespace {

// The largest cache of the first core, as Linux counts it. sysconf(_SC_LEVEL3_CACHE_SIZE) gives an AMD package's caches
// together: 384 MiB where each core has 32.
size_t measured_size() {
  size_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
    size_t size = 0;
    char unit = 0;
    if (!(file >> size)) break;
    if (file >> unit) size <<= unit == 'M' ? 20 : 10;
    if (size > largest) largest = size;
  }
  return largest > 0 ? largest : size_t{32} << 20;  // some virtual machines do not tell
}

}  // namespace

size_t last_level_cache_size() {
  static const size_t size = measured_size();
  return size;
}

bool exceeds_caches(int64_t num_bytes) { return num_bytes > static_cast<int64_t>(last_level_cache_size()); }

}  // namespace fusionkit_cpu
