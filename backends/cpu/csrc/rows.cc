#include "rows.h"

namespace fusionkit_cpu {

Rows rows_of(const Tensor& tensor) {
  Rows rows{};
  rows.data = tensor.data;
  rows.count = 1;
  const int last = tensor.num_dims - 1;
  rows.size = last >= 0 ? tensor.shape[last] : 1;
  rows.stride = rows.size > 1 ? tensor.strides[last] : 1;
  for (int i = 0; i < last; ++i) {
    const int64_t size = tensor.shape[i], stride = tensor.strides[i];
    rows.count *= size;
    if (size == 1) continue;
    const int outer = rows.num_axes - 1;
    if (outer >= 0 && rows.strides[outer] == stride * size) {
      rows.shape[outer] *= size;
      rows.strides[outer] = stride;
    } else {
      rows.shape[rows.num_axes] = size;
      rows.strides[rows.num_axes++] = stride;
    }
  }
  return rows;
}

}  // namespace fusionkit_cpu
