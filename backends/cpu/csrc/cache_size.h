#pragma once

#include <cstddef>

namespace fusionkit_cpu {

size_t last_level_cache_size();  // bytes that one core shares with its neighbours

}  // namespace fusionkit_cpu
