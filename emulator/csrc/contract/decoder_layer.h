// What fused_blha_layer_op computes, on float32 tensors in host memory: one decoder layer of Llama over a paged cache.
#pragma once

#include <cstdint>
#include <vector>

namespace fusionkit_emulator {

struct DecoderLayer {
  int64_t hidden_size, num_heads, num_key_value_heads, head_dim, intermediate_size;
  float epsilon;
  bool halves;  // element i is rotated with i + D / 2, else 2i with 2i + 1
  // Weights of products are [out, in]; qkv holds q, k, v along its rows, ffn1 gate and up; qkv_bias may be empty.
  std::vector<float> norm, qkv, qkv_bias, out_linear, ffn_norm, ffn1, ffn2;
};

// The tokens of one step: of each row `num_tokens`, of which the first stands at `first_position` of its sequence.
struct StepRow {
  int64_t first_token, num_tokens, first_position;
};

// A token's place in the cache: [blocks, kv heads, block_size, D].
struct PagedCache {
  int64_t num_key_value_heads, block_size, head_dim, blocks_per_row;
  std::vector<int64_t> block_tables;  // [rows, blocks_per_row]

  int64_t offset(int64_t row, int64_t position, int64_t head) const;
};

// q, k, v of a step's tokens side by side, q and k rotated by cos and sin [tokens, D].
std::vector<float> projected(const DecoderLayer& layer, const std::vector<float>& x, const std::vector<float>& cos,
                             const std::vector<float>& sin);

// The layer's output [tokens, hidden_size], when the step's keys and values are in the cache.
std::vector<float> decoder_layer(const DecoderLayer& layer, const std::vector<float>& x,
                                 const std::vector<float>& projected, const std::vector<StepRow>& rows,
                                 const PagedCache& cache, const float* keys, const float* values);

// x [rows, in] times weight [out, in].
std::vector<float> product(const std::vector<float>& x, const std::vector<float>& weight, int64_t in, int64_t out);

}  // namespace fusionkit_emulator
