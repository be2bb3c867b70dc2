// What fused_rope (npu) and fused_rotary_embedding_gcu compute, on float32 tensors in host memory.
#pragma once

#include <cstdint>

namespace fusionkit_emulator {

struct RopeShape {
  int64_t batch_size, seq_len, num_heads, head_dim;
};

// y = x * cos + rotate_half(x) * sin, rotate_half((x1, x2)) = (-x2, x1). x, y: [B, S, H, D]; cos, sin: [S, D].
void rope_halves(const float* x, const float* cos, const float* sin, const RopeShape& shape, float* y);
void rope_halves_grad(const float* dy, const float* cos, const float* sin, const RopeShape& shape, float* dx);

// table: [max_position, D], the cos of D / 2 frequencies and then their sin; positions: [B, S]. is_neox pairs element i
// with i + D / 2, else 2i with 2i + 1. Throws std::out_of_range for a position without a row.
void rope_from_table(const float* x, const float* table, int64_t max_position, const int64_t* positions, bool is_neox,
                     const RopeShape& shape, float* y);

}  // namespace fusionkit_emulator
