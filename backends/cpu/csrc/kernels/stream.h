#pragma once

#include "kernels/table.h"

FUSIONKIT_FOR_EACH_ISA(
    // Sizes in bytes; non_temporal asks for a target aligned to 64.
    void stream(const char* source, int64_t source_size, char* target, int64_t target_size, bool non_temporal);)
