#include "bias_gradient.h"

#include <algorithm>

#include "buffer.h"
#include "kernels/products.h"
#include "parallel.h"
#include "product.h"

namespace fusionkit_cpu {

void sum_rows(const Matrix& dy, const Tensor& dbias) {
  constexpr int64_t kStrip = 64;  // columns; every strip is summed in row order, whichever thread takes it
  const Buffer sums(dy.cols * sizeof(float));
  parallel_for((dy.cols + kStrip - 1) / kStrip, 1, [&](int64_t begin, int64_t end, int) {
    const Matrix strip = slice_cols(dy, begin * kStrip, std::min(end * kStrip, dy.cols));
    FUSIONKIT_DISPATCH(sum_columns, strip, sums.as<float>() + begin * kStrip);
  });
  convert(contiguous(sums.as<void>(), DType::kFloat32, 1, dy.cols), DType::kFloat32, nullptr,
          contiguous(dbias.data, dbias.dtype, 1, dy.cols));
}

}  // namespace fusionkit_cpu
