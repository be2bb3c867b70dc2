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

[[gnu::always_inline]] static inline void transpose(UintVec (&rows)[kLanes]) {
  constexpr std::make_integer_sequence<int, kLanes> lanes{};
  exchange<1>(rows, lanes);
  exchange<2>(rows, lanes);
  if constexpr (kLanes > 4) exchange<4>(rows, lanes);
  if constexpr (kLanes > 8) exchange<8>(rows, lanes);
}

// The first `count` rows of a square, to rows `stride` values apart.
[[gnu::always_inline]] static inline void store_rows(const UintVec (&rows)[kLanes], int64_t count, void* to,
                                                     int64_t stride) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i < count) __builtin_memcpy(static_cast<char*>(to) + i * stride * 4, &rows[i], sizeof rows[i]);
  }
}

// A square in memory, rows a stride apart; the first `count` rows of its transpose are written.
static inline void transpose_square(const void* from, int64_t from_stride, void* to, int64_t to_stride, int64_t count) {
  UintVec rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    __builtin_memcpy(&rows[i], static_cast<const char*>(from) + i * from_stride * 4, sizeof rows[i]);
  }
  transpose(rows);
  store_rows(rows, count, to, to_stride);
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
