#pragma once

#include <cstddef>
#include <cstdint>

namespace fusionkit_cpu {

size_t last_level_cache_size();  // bytes that one core shares with its neighbours

// Whether results are written past the caches, when a call reads and writes so many bytes.
bool exceeds_caches(int64_t num_bytes);

}  // namespace fusionkit_cpu
