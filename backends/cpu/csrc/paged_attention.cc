// Every value is checked before the first write to a cache.
#include "paged_attention.h"

#include <cmath>
#include <string>
#include <vector>

#include "check.h"

namespace fusionkit_cpu {
namespace {

constexpr const char* kOp = "paged_attention";

int32_t value_at(const Tensor& tensor, int64_t row, int64_t column = 0) {
  const int64_t offset = row * tensor.strides[0] + (tensor.num_dims > 1 ? column * tensor.strides[1] : 0);
  return static_cast<const int32_t*>(tensor.data)[offset];
}

std::string item(const std::string& value, int64_t row) { return value + " in row " + std::to_string(row); }

void require_tokens(const Tensor& q, const Tensor& k, const Tensor& v) {
  require_floating(kOp, "q", q);
  require_num_dims(kOp, "q", q, 3);
  require(q.shape[1] > 0 && q.shape[2] > 0, kOp, "q", "[tokens, heads, head_dim] with a head", q);
  require_num_dims(kOp, "k", k, 3);
  require_input(kOp, "k", k, {q.dtype}, {q.shape[0], k.shape[1], q.shape[2]});
  if (k.shape[1] == 0 || q.shape[1] % k.shape[1] != 0)
    fail(kOp, "k", "of a number of heads that divides q's " + std::to_string(q.shape[1]), describe(k));
  require_like(kOp, "v", v, "k", k);
}

void require_caches(const Tensor& k, const Tensor& key_cache, const Tensor& value_cache, const Tensor& key_scales,
                    const Tensor& value_scales) {
  require_num_dims(kOp, "key_cache", key_cache, 4);
  const bool has_scales = key_scales || value_scales;
  require_input(kOp, "key_cache", key_cache, {has_scales ? DType::kInt8 : k.dtype},
                {key_cache.shape[0], k.shape[1], key_cache.shape[2], k.shape[2]});
  require(key_cache.shape[2] > 0, kOp, "key_cache", "[blocks, kv_heads, block_size, head_dim] with block_size > 0",
          key_cache);
  require_like(kOp, "value_cache", value_cache, "key_cache", key_cache);
  if (!has_scales) return;
  const auto require_scales = [&](const char* name, const Tensor& scales) {
    require_input(kOp, name, scales, {DType::kFloat32}, {key_cache.shape[0], k.shape[1], key_cache.shape[2]});
  };
  require_scales("key_scales", key_scales);
  require_scales("value_scales", value_scales);
}

// First position after this step's tokens of a row.
int64_t require_row_lengths(int64_t row, int64_t encoder, int64_t decoder, int64_t this_time) {
  if (this_time < 0) fail(kOp, "seq_lens_this_time", "0 or more", item(std::to_string(this_time), row));
  if (this_time == 0) return 0;
  if (encoder < 0) fail(kOp, "seq_lens_encoder", "0 or more", item(std::to_string(encoder), row));
  if (encoder > 0 && this_time != encoder)
    fail(kOp, "seq_lens_this_time", "equal to seq_lens_encoder in prefill",
         item(std::to_string(this_time) + " against " + std::to_string(encoder), row));
  if (encoder == 0 && decoder < 0) fail(kOp, "seq_lens_decoder", "0 or more", item(std::to_string(decoder), row));
  return encoder > 0 ? encoder : decoder + this_time;
}

// The blocks of a row's positions [first_key, length); 0 for those before.
std::vector<int32_t> read_blocks(const Tensor& block_tables, int64_t row, int64_t first_key, int64_t length,
                                 int64_t block_size, int64_t num_blocks) {
  const int64_t needed = (length + block_size - 1) / block_size;
  if (needed > block_tables.shape[1])
    fail(kOp, "block_tables", "of at least " + std::to_string(needed) + " blocks a row",
         describe(block_tables) + "; row " + std::to_string(row) + " reaches " + std::to_string(length) +
             " positions in blocks of " + std::to_string(block_size));
  std::vector<int32_t> blocks(needed);
  for (int64_t i = first_key / block_size; i < needed; ++i) {
    blocks[i] = value_at(block_tables, row, i);
    if (blocks[i] < 0 || blocks[i] >= num_blocks)
      fail(kOp, "block_tables", "between 0 and " + std::to_string(num_blocks - 1) + " (the cache's blocks)",
           std::to_string(blocks[i]) + " at [" + std::to_string(row) + ", " + std::to_string(i) + "]");
  }
  return blocks;
}

// The rows that have tokens in this step.
std::vector<StepRow> read_rows(int64_t num_tokens, const Tensor& key_cache, const Tensor& block_tables,
                               const Tensor& encoder, const Tensor& decoder, const Tensor& this_time, int64_t window) {
  require_dtype(kOp, "block_tables", block_tables, {DType::kInt32});
  require_num_dims(kOp, "block_tables", block_tables, 2);
  const int64_t batch_size = block_tables.shape[0];
  require_input(kOp, "seq_lens_encoder", encoder, {DType::kInt32}, {batch_size});
  require_input(kOp, "seq_lens_decoder", decoder, {DType::kInt32}, {batch_size});
  require_input(kOp, "seq_lens_this_time", this_time, {DType::kInt32}, {batch_size});
  std::vector<StepRow> rows;
  int64_t total = 0;
  for (int64_t row = 0; row < batch_size; ++row) {
    const int64_t count = value_at(this_time, row);
    const int64_t length = require_row_lengths(row, value_at(encoder, row), value_at(decoder, row), count);
    if (count == 0) continue;
    const int64_t first_position = length - count;
    const int64_t first_key = window > 0 && first_position >= window ? first_position - window + 1 : 0;
    rows.push_back({total, count, first_position, first_key,
                    read_blocks(block_tables, row, first_key, length, key_cache.shape[2], key_cache.shape[0])});
    total += count;
  }
  if (total != num_tokens)
    fail(kOp, "seq_lens_this_time", "of the sum " + std::to_string(num_tokens) + " (q's tokens)",
         std::to_string(total));
  return rows;
}

}  // namespace

void paged_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_cache,
                     const Tensor& value_cache, const Tensor& block_tables, const Tensor& seq_lens_encoder,
                     const Tensor& seq_lens_decoder, const Tensor& seq_lens_this_time, float scale, int64_t window,
                     const Tensor& out, bool batch_invariant, const Tensor& key_scales, const Tensor& value_scales) {
  require_tokens(q, k, v);
  require_caches(k, key_cache, value_cache, key_scales, value_scales);
  if (window < 0) fail(kOp, "window", "at least 1, or 0 for none", std::to_string(window));
  if (window > INT32_MAX) window = 0;  // positions are int32
  const std::vector<StepRow> rows =
      read_rows(q.shape[0], key_cache, block_tables, seq_lens_encoder, seq_lens_decoder, seq_lens_this_time, window);
  if (!std::isfinite(scale)) fail(kOp, "scale", "finite", std::to_string(scale));
  require_output_like(kOp, "out", out, "q", q);
  FUSIONKIT_DISPATCH(paged_attention, q, k, v, key_cache, value_cache, key_scales, value_scales, rows, scale, window,
                     batch_invariant, out);
}

}  // namespace fusionkit_cpu
