#include "panels.h"

#include "parallel.h"
#include "product.h"

namespace fusionkit_cpu {

void pack_panels(const Matrix& b, DType round_to, const PanelFormat& format, void* panels) {
  constexpr int64_t kGrain = 16;  // strips worth a thread
  const int64_t strips = format.count(b.cols) * FUSIONKIT_DISPATCH(num_strips, format);
  parallel_for(strips, kGrain, [&](int64_t begin, int64_t end, int) {
    FUSIONKIT_DISPATCH(pack_strips, b, round_to, format, begin, end, panels);
  });
}

void make_row_major(const Matrix& a, const Matrix& to) {
  if (a.row_stride != 1 || a.col_stride == 1) return convert(a, DType::kFloat32, nullptr, to);
  constexpr int64_t kStrip = 64;  // columns of memory: whole cache lines
  parallel_for((to.rows + kStrip - 1) / kStrip, 1, [&](int64_t begin, int64_t end, int) {
    const int64_t last = end * kStrip < to.rows ? end * kStrip : to.rows;
    FUSIONKIT_DISPATCH(transpose_rows, transposed(a), to, begin * kStrip, last);
  });
}

}  // namespace fusionkit_cpu
