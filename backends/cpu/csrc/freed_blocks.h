// Memory for large results. A freed block serves the next result of about its size, so that no page is fetched anew.
#pragma once

#include <cstddef>

namespace fusionkit_cpu {

constexpr size_t kSmallestBlock = size_t{1} << 20;  // below it the framework's own memory serves as well

struct BlockBytes {
  size_t in_use, freed, peak;  // the most that was in use at once; in_use + freed never exceeds it
};

// At a page's beginning, not initialised; null for less than kSmallestBlock, and where freed blocks are not reused.
// Throws std::bad_alloc.
void* take_block(size_t num_bytes);
void give_block(void* block);  // from any thread

void set_reuse_freed_blocks(bool on);  // on at first; blocks taken before stay valid
BlockBytes block_bytes();

}  // namespace fusionkit_cpu
