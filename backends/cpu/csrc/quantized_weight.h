// A weight of 8 or 4 bits, packed: one block of bytes that describes itself, alike for all instruction sets.
#pragma once

#include <cstddef>

#include "kernels/quantized_product.h"
#include "matrix.h"

namespace fusionkit_cpu {

// Whether the block says so of itself; one that is not a pack at all does not.
bool is_quantized(const void* packed, size_t packed_size);

// Throws, naming `op`, unless the block is whole and holds a weight of this shape.
void require_quantized(const char* op, const void* packed, size_t packed_size, int64_t in_features,
                       int64_t out_features);

// Of a block that passed require_quantized(): its format, and where its panels are.
struct QuantizedPanels {
  QuantizedFormat format;
  const char* panels;

  const char* at(int64_t panel) const { return panels + panel * panel_bytes(format); }
};
QuantizedPanels panels_of(const void* packed);

}  // namespace fusionkit_cpu
