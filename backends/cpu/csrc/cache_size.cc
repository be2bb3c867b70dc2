#include "cache_size.h"

#include <unistd.h>

namespace fusionkit_cpu {

size_t last_level_cache_size() {
  static const size_t size = [] {
    long found = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    found = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (found <= 0) found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return found > 0 ? static_cast<size_t>(found) : size_t{32} << 20;  // many Arm systems do not tell
  }();
  return size;
}

bool exceeds_caches(int64_t num_bytes) { return num_bytes > static_cast<int64_t>(last_level_cache_size()); }

}  // namespace fusionkit_cpu
