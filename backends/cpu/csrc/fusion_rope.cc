#include "fusion_rope.h"

#include <string>
#include <vector>

#include "check.h"

namespace fusionkit_cpu {
namespace {

template <class Index>
std::vector<int64_t> read_positions(const Tensor& position_ids, int64_t max_position) {
  std::vector<int64_t> positions;
  positions.reserve(num_elements(position_ids));
  for (int64_t b = 0; b < position_ids.shape[0]; ++b)
    for (int64_t s = 0; s < position_ids.shape[1]; ++s) {
      const int64_t offset = b * position_ids.strides[0] + s * position_ids.strides[1];
      const int64_t position = static_cast<const Index*>(position_ids.data)[offset];
      if (position < 0 || position >= max_position)
        fail("fusion_rope", "position_ids", "in [0, " + std::to_string(max_position) + "), the rows of cos and sin",
             std::to_string(position) + "; at [" + std::to_string(b) + ", " + std::to_string(s) +
                 "]. Give longer tables or smaller positions");
      positions.push_back(position);
    }
  return positions;
}

// One position a token.
std::vector<int64_t> check_positions(const Tensor& x, const Tensor& position_ids, int64_t max_position) {
  const int64_t batch_size = x.shape[0], seq_len = x.shape[1];
  if (position_ids) {
    require_input("fusion_rope", "position_ids", position_ids, {DType::kInt32, DType::kInt64}, {batch_size, seq_len});
    return position_ids.dtype == DType::kInt32 ? read_positions<int32_t>(position_ids, max_position)
                                               : read_positions<int64_t>(position_ids, max_position);
  }
  if (seq_len > max_position)
    fail("fusion_rope", "x", "of a seq_len of at most " + std::to_string(max_position) + ", the rows of cos and sin",
         describe(x) + ". Give longer tables or position_ids");
  std::vector<int64_t> positions(batch_size * seq_len);
  for (int64_t token = 0; token < batch_size * seq_len; ++token) positions[token] = token % seq_len;
  return positions;
}

}  // namespace

void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& position_ids, bool interleaved,
          bool inverse, const Tensor& y) {
  require_floating("fusion_rope", "x", x);
  require(x.num_dims == 4 && x.shape[3] % 2 == 0, "fusion_rope", "x",
          "[batch_size, seq_len, num_heads, head_dim] with an even head_dim", x);
  require_num_dims("fusion_rope", "cos", cos, 2);
  const int64_t max_position = cos.shape[0];
  require_input("fusion_rope", "cos", cos, {DType::kFloat32}, {max_position, x.shape[3] / 2});
  require_input("fusion_rope", "sin", sin, {DType::kFloat32}, {max_position, x.shape[3] / 2});
  require_output_like("fusion_rope", "y", y, "x", x);
  const std::vector<int64_t> positions = check_positions(x, position_ids, max_position);
  FUSIONKIT_DISPATCH(rope, x, cos, sin, positions.data(), interleaved, inverse, y);
}

}  // namespace fusionkit_cpu
