// Holds the model of the tile instructions against the manual's formula, element by element, and against the processor
// where it has tiles. Prints how many elements of each kind of operand were compared, and how many differ in bits.
//
//   model [--wrong]   with --wrong one element of the model's sums is changed, which has to be seen
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "kernels/tile_instructions.h"
#include "kernels/tile_model.h"
#include "tiles.h"

namespace {

using namespace fusionkit_cpu;
using namespace fusionkit_cpu::FUSIONKIT_ISA;

constexpr int kTiles = 300, kSize = 16 * 16;

struct Tiles {
  uint16_t a[2 * kSize], b[2 * kSize];
  float c[kSize];
};

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

float widened(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return flushed(value);
}

// Row m, column n of C after the instruction, as volume 2 of Intel's manual writes TDPBF16PS.
float formula(const Tiles& tiles, int m, int n) {
  float sums[2] = {};
  for (int k = 0; k < 16; ++k)
    for (int odd = 0; odd < 2; ++odd)
      sums[odd] =
          flushed(std::fma(widened(tiles.a[m * 32 + 2 * k + odd]), widened(tiles.b[k * 32 + 2 * n + odd]), sums[odd]));
  return flushed(flushed(tiles.c[m * 16 + n]) + flushed(sums[0] + sums[1]));
}

using Kind = const char*;
constexpr Kind kKinds[] = {"normal", "wide exponents", "denormal", "any bits"};

uint16_t element(int kind, std::mt19937& random) {
  const uint32_t bits = random();
  if (kind == 1) return (bits & 0x807f) | (112 + (bits >> 16) % 32) << 7;
  if (kind == 2) return (bits & 0x807f) | ((bits >> 16) % 80) << 7;  // products and sums below 2^-126
  if (kind == 3) return bits;                                        // infinities and NaN
  const float value = std::normal_distribution<float>()(random);
  uint32_t float_bits;
  std::memcpy(&float_bits, &value, 4);
  return float_bits >> 16;
}

Tiles make(int kind, std::mt19937& random) {
  Tiles tiles;
  for (auto& x : tiles.a) x = element(kind, random);
  for (auto& x : tiles.b) x = element(kind, random);
  for (auto& x : tiles.c) x = std::normal_distribution<float>()(random) * (kind == 2 ? 1e-38f : 1);
  return tiles;
}

template <class Form>
void multiply(const Tiles& tiles, float* c) {
  std::memcpy(c, tiles.c, sizeof tiles.c);
  uint32_t a[kSize], b[kSize];
  std::memcpy(a, tiles.a, sizeof a);
  std::memcpy(b, tiles.b, sizeof b);
  Form::template multiply<1, 1>(a, 16, b, 16, 1, c, 16, true);
}

bool same(float a, float b) { return std::memcmp(&a, &b, 4) == 0 || (std::isnan(a) && std::isnan(b)); }

bool has_tiles() {
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && tiles_permitted();
}

}  // namespace

int main(int count, char** arguments) {
  const bool wrong = count > 1 && std::strcmp(arguments[1], "--wrong") == 0;
  const bool hardware = has_tiles();
  const TileRegion region(hardware);
  long differ = 0;
  std::mt19937 random(1);
  for (int kind = 0; kind < 4; ++kind) {
    long from_formula = 0, from_processor = 0;
    for (int i = 0; i < kTiles; ++i) {
      const Tiles tiles = make(kind, random);
      float modelled[kSize], computed[kSize];
      multiply<ModelTiles>(tiles, modelled);
      if (wrong) modelled[17] = std::nextafter(modelled[17], 3e38f);
      if (hardware) multiply<HardwareTiles>(tiles, computed);
      for (int j = 0; j < kSize; ++j) {
        from_formula += !same(modelled[j], formula(tiles, j / 16, j % 16));
        from_processor += hardware && !same(modelled[j], computed[j]);
      }
    }
    std::printf("%s: %d elements, %ld differ from the formula, %ld from the processor\n", kKinds[kind], kTiles * kSize,
                from_formula, from_processor);
    differ += from_formula + from_processor;
  }
  std::printf("tiles of this processor: %s\n", hardware ? "compared" : "none");
  return differ != 0;
}
