#include "cast.h"

#include "check.h"
#include "product.h"

namespace fusionkit_cpu {

void cast(const Tensor& from, const Tensor& to) {
  require_num_dims("cast", "from", from, 2);
  require_floating("cast", "from", from);
  require_floating("cast", "to", to);
  require_input("cast", "to", to, {to.dtype}, {from.shape[0], from.shape[1]});
  convert(matrix_of(from), to.dtype, nullptr, matrix_of(to));
}

}  // namespace fusionkit_cpu
