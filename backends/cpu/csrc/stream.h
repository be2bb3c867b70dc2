#pragma once

#include "kernels/table.h"

// For benchmarks: the bandwidth of a read:write mix, on num_threads() threads. Reads every byte of `source` once while
// it sets every byte of `target` to 1, in proportion to their sizes; both contiguous, of any dtype, either may be
// empty. non_temporal writes past the caches and asks for a target aligned to 64 bytes. Which way is the faster depends
// on the sizes and on what the caches hold: the ceiling is the better of the two.
FUSIONKIT_ENTRY_POINTS(void stream(const Tensor& source, const Tensor& target, bool non_temporal);)

// For benchmarks of cold data: reads four times the last-level cache, from memory that it keeps, so that no cache of
// the threads' cores holds what was used before.
FUSIONKIT_ENTRY_POINTS(void flush_caches();)

FUSIONKIT_KERNELS(stream,
                  // Sizes in bytes; non_temporal asks for a target aligned to 64.
                  void stream(const char* source, int64_t source_size, char* target, int64_t target_size,
                              bool non_temporal);)
