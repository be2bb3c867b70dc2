#include "swiglu.h"

#include "check.h"

namespace fusionkit_cpu {
namespace {

// A contiguous tensor as one row.
Tensor flat(const Tensor& tensor) {
  Tensor row = tensor;
  row.num_dims = 1;
  row.shape[0] = num_elements(tensor);
  row.strides[0] = 1;
  return row;
}

}  // namespace

void swiglu(const Tensor& gate, const Tensor& up, const Tensor& y) {
  require_floating("swiglu", "gate", gate);
  require_like("swiglu", "up", up, "gate", gate);
  require_output_like("swiglu", "y", y, "gate", gate);
  if (is_contiguous(gate) && is_contiguous(up)) return FUSIONKIT_DISPATCH(swiglu, flat(gate), flat(up), flat(y));
  FUSIONKIT_DISPATCH(swiglu, gate, up, y);
}

void swiglu_grad(const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate, const Tensor& dup) {
  const char* op = "swiglu_grad";
  require_floating(op, "gate", gate);
  require_like(op, "up", up, "gate", gate);
  require_like(op, "dy", dy, "gate", gate);
  require_output_like(op, "dgate", dgate, "gate", gate);
  require_output_like(op, "dup", dup, "gate", gate);
  if (is_contiguous(gate) && is_contiguous(up) && is_contiguous(dy))
    return FUSIONKIT_DISPATCH(swiglu_grad, flat(gate), flat(up), flat(dy), flat(dgate), flat(dup));
  FUSIONKIT_DISPATCH(swiglu_grad, gate, up, dy, dgate, dup);
}

}  // namespace fusionkit_cpu
