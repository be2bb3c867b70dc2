// Arithmetic without memory traffic: the ceiling of everything that multiplies.
#include "peak.h"

#include "kernels/simd.h"
#if defined(__AMX_BF16__)
#include "kernels/tile_instructions.h"
#include "tiles.h"
#endif

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

// Two units whose results come 4 to 6 cycles later ask for 8 to 12 chains. Without AVX-512 there are 16 registers, of
// which two hold the factors.
constexpr int kChains = kLanes == 16 ? 24 : 12;

// sum = multiply_add(sum) in each chain, `turns` times.
template <class MultiplyAdd>
void run_chains(int64_t turns, const MultiplyAdd& multiply_add) {
  Vec sums[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sums[i] = broadcast(static_cast<float>(i));  // unlike, or they would be one chain
  for (; turns > 0; --turns)
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) sums[i] = multiply_add(sums[i]);
  Vec total{};
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) total += sums[i];
  asm volatile("" : : "m"(total));  // without a use the chains would be removed
}

int64_t multiply_floats(int64_t turns) {
  const volatile float unknown = 0.5f;  // to the compiler, which would compute a chain that stays where it begins
  const Vec half = broadcast(unknown), one = broadcast(1.0f);
  run_chains(turns, [&](Vec sum) { return fma(sum, half, one); });
  return turns * kChains * kLanes * 2;
}

#if defined(__AVX512BF16__)
int64_t multiply_pairs_of_lanes(int64_t turns) {
  const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  run_chains(turns, [&](Vec sum) { return (Vec)_mm512_dpbf16_ps((__m512)sum, ones, ones); });
  return turns * kChains * kLanes * 4;
}
#endif

#if defined(__AMX_BF16__)
int64_t multiply_tiles(int64_t turns) {
  constexpr int kTiles = 4, kTileFlops = 16 * 16 * 32 * 2;
  alignas(64) uint32_t ones[16 * 16];
  for (uint32_t& pair : ones) pair = 0x3f803f80;
  const TileRegion region(true);
  zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
  load_tile<4>(ones, 16), load_tile<5>(ones, 16), load_tile<6>(ones, 16), load_tile<7>(ones, 16);
  for (int64_t turn = 0; turn < turns; ++turn) {
    multiply_pairs<0, 4, 6>();
    multiply_pairs<1, 4, 7>();
    multiply_pairs<2, 5, 6>();
    multiply_pairs<3, 5, 7>();
  }
  return turns * kTiles * kTileFlops;
}
#endif

}  // namespace

int64_t multiply_in_registers(DType dtype, int64_t turns) {
  if (dtype == DType::kFloat32) return multiply_floats(turns);
#if defined(__AMX_BF16__)
  if (!tiles_are_modelled()) return multiply_tiles(turns);
#endif
#if defined(__AVX512BF16__)
  return multiply_pairs_of_lanes(turns);
#else
  return 0;
#endif
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
