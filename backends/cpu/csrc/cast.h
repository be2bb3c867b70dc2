#pragma once

#include "kernels/table.h"

// to = from, rounded to to's dtype; both [rows, cols] of floating dtypes.
FUSIONKIT_ENTRY_POINTS(void cast(const Tensor& from, const Tensor& to);)
