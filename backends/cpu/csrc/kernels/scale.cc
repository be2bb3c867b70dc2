#include "scale.h"

#include "kernels/row_access.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

void scale(const Tensor& x, float factor, const Tensor& y) {
  constexpr int64_t kElementsPerShare = 65536;
  const Rows rows = rows_of(x);
  visit_floating(x.dtype, [&](auto* type) {
    parallel_for(rows.count * rows.size, kElementsPerShare, [&](int64_t begin, int64_t end, int) {
      const auto* from = static_cast<decltype(type)>(x.data) + begin;
      auto* to = static_cast<decltype(type)>(y.data) + begin;
      for_each_vec(end - begin,
                   [&](int64_t i, auto lanes) { lanes.store(to + i, lanes.fetch(from + i) * broadcast(factor)); });
    });
  });
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
