#include <pybind11/stl.h>

#include "arrays.h"
#include "bind.h"
#include "flash_attention.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

AttentionMask mask_of(const char* op, bool causal, const OptionalArray& attn_mask,
                      const OptionalArray& startend_row_indices) {
  return {causal, view(op, "attn_mask", attn_mask), view(op, "startend_row_indices", startend_row_indices)};
}

auto flash_attention_arrays(const Array& q, const Array& k, const Array& v, bool causal, const OptionalArray& attn_mask,
                            const OptionalArray& startend_row_indices, float scale) {
  const char* op = "flash_attention";
  const Array out = empty_like(q);
  const Array lse = empty({axis_size(q, 0), axis_size(q, 2), axis_size(q, 1)}, py::dtype::of<float>());
  Call{flash_attention,
       view(op, "q", q),
       view(op, "k", k),
       view(op, "v", v),
       mask_of(op, causal, attn_mask, startend_row_indices),
       scale,
       result(out),
       result(lse)};
  return py::make_tuple(out, lse);
}

auto flash_attention_grad_arrays(const Array& q, const Array& k, const Array& v, const Array& out, const Array& lse,
                                 bool causal, const OptionalArray& attn_mask, const OptionalArray& startend_row_indices,
                                 float scale, const Array& dout, const OptionalArray& dlse) {
  const char* op = "flash_attention_grad";
  const Array dq = empty_like(q), dk = empty_like(k), dv = empty_like(v);
  Call{flash_attention_grad,
       view(op, "q", q),
       view(op, "k", k),
       view(op, "v", v),
       view(op, "out", out),
       view(op, "lse", lse),
       mask_of(op, causal, attn_mask, startend_row_indices),
       scale,
       view(op, "dout", dout),
       view(op, "dlse", dlse),
       result(dq),
       result(dk),
       result(dv)};
  return py::make_tuple(dq, dk, dv);
}

}  // namespace

FUSIONKIT_BIND(flash_attention) {
  module.def("flash_attention", &flash_attention_arrays, "q"_a, "k"_a, "v"_a, "causal"_a, "attn_mask"_a,
             "startend_row_indices"_a, "scale"_a, "-> (out, lse)");
  module.def("flash_attention_grad", &flash_attention_grad_arrays, "q"_a, "k"_a, "v"_a, "out"_a, "lse"_a, "causal"_a,
             "attn_mask"_a, "startend_row_indices"_a, "scale"_a, "dout"_a, "dlse"_a = py::none(), "-> (dq, dk, dv)");
}

}  // namespace fusionkit_cpu
