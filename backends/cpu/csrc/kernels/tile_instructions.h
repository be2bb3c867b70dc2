// AMX tiles: eight registers of 16 rows of 64 bytes. Own assembly: the compiler's intrinsics (g++ 12) do not say that
// they read and write memory.
#pragma once

#include <cstdint>

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

// The configuration is the thread's.
class TileRegion {
 public:
  explicit TileRegion(bool hardware) : hardware_(hardware) {
    if (!hardware_) return;
    struct [[gnu::packed]] {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    static_assert(sizeof configuration == 64);
    asm volatile("ldtilecfg %0" ::"m"(configuration) : "memory");
  }
  ~TileRegion() {
    if (hardware_) asm volatile("tilerelease" ::: "memory");
  }
  TileRegion(const TileRegion&) = delete;
  TileRegion& operator=(const TileRegion&) = delete;

 private:
  const bool hardware_;
};

template <int kTile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// Strides in groups of 4 bytes.
template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(4 * stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(4 * stride), "i"(kTile) : "memory");
}
template <int kSums, int kLeft, int kRight>
inline void multiply_pairs() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kLeft), "i"(kRight));
}

struct HardwareTiles {
  // As ModelTiles: sums in the registers 0 to 3, A in 4 and 5, B in 6 and 7.
  template <int kRows, int kColumns>
  static void multiply(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, int64_t steps,
                       float* c, int64_t c_stride, bool accumulate) {
    float *right_of_c = c + 16, *below_c = c + 16 * c_stride;
    if (accumulate) {
      load_tile<0>(c, c_stride);
      if constexpr (kColumns > 1) load_tile<1>(right_of_c, c_stride);
      if constexpr (kRows > 1) load_tile<2>(below_c, c_stride);
      if constexpr (kRows > 1 && kColumns > 1) load_tile<3>(below_c + 16, c_stride);
    } else {
      zero_tile<0>();
      if constexpr (kColumns > 1) zero_tile<1>();
      if constexpr (kRows > 1) zero_tile<2>();
      if constexpr (kRows > 1 && kColumns > 1) zero_tile<3>();
    }
    for (; steps > 0; --steps, a += 16, b += 16 * b_stride) {
      load_tile<4>(a, a_stride);
      load_tile<6>(b, b_stride);
      multiply_pairs<0, 4, 6>();
      if constexpr (kColumns > 1) load_tile<7>(b + 16, b_stride);
      if constexpr (kColumns > 1) multiply_pairs<1, 4, 7>();
      if constexpr (kRows > 1) load_tile<5>(a + 16 * a_stride, a_stride);
      if constexpr (kRows > 1) multiply_pairs<2, 5, 6>();
      if constexpr (kRows > 1 && kColumns > 1) multiply_pairs<3, 5, 7>();
    }
    store_tile<0>(c, c_stride);
    if constexpr (kColumns > 1) store_tile<1>(right_of_c, c_stride);
    if constexpr (kRows > 1) store_tile<2>(below_c, c_stride);
    if constexpr (kRows > 1 && kColumns > 1) store_tile<3>(below_c + 16, c_stride);
  }
};

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
