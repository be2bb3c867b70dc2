#include "kernels/scale.h"

#include "kernels/row_access.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {

void scale(const Tensor& x, float factor) {
  constexpr int64_t kElementsPerShare = 65536;
  const Rows rows = rows_of(x);
  visit_floating(x.dtype, [&](auto* type) {
    parallel_for(rows.count * rows.size, kElementsPerShare, [&](int64_t begin, int64_t end, int) {
      auto* values = static_cast<decltype(type)>(x.data) + begin;
      for_each_vec(end - begin, [&](int64_t i, auto lanes) {
        lanes.store(values + i, lanes.fetch(values + i) * broadcast(factor));
      });
    });
  });
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
