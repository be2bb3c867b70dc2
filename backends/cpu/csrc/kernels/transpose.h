// A square of kLanes x kLanes 32-bit values, transposed in registers. Included by kernels/*.cc only; see vec.h.
#pragma once

#include <utility>

#include "kernels/vec.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

// Exchanges the upper-right and lower-left Width x Width squares of each 2 Width x 2 Width square.
template <int Width, int... Lane>
static inline void exchange(UintVec (&rows)[kLanes], std::integer_sequence<int, Lane...>) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & Width) continue;
    const UintVec upper = rows[i], lower = rows[i + Width];
    rows[i] = __builtin_shuffle(upper, lower, IntVec{(Lane & Width ? kLanes + Lane - Width : Lane)...});
    rows[i + Width] = __builtin_shuffle(upper, lower, IntVec{(Lane & Width ? kLanes + Lane : Lane + Width)...});
  }
}

static inline void transpose(UintVec (&rows)[kLanes]) {
  constexpr std::make_integer_sequence<int, kLanes> lanes{};
  exchange<1>(rows, lanes);
  exchange<2>(rows, lanes);
  if constexpr (kLanes > 4) exchange<4>(rows, lanes);
  if constexpr (kLanes > 8) exchange<8>(rows, lanes);
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
