// The layout that oneDNN prefers for a weight, and weights in it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/products.h"

namespace fusionkit_cpu {

struct WeightLayout {
  std::vector<uint8_t> blob;  // oneDNN's own description
  size_t num_bytes;
  std::optional<PanelFormat> panels;  // when it is panels that the own kernels can write
};

// For a weight of rows x cols that multiplies any number of rows.
std::shared_ptr<const WeightLayout> onednn_weight_layout(DType compute, int64_t rows, int64_t cols);

// b in that layout, its elements rounded to `round_to`. Own panels take half the time of oneDNN's reorder from bfloat16
// and a quarter of it from float32 or a transposed b.
void onednn_pack(const Matrix& b, DType round_to, const WeightLayout& layout, DType compute, void* packed);

}  // namespace fusionkit_cpu
