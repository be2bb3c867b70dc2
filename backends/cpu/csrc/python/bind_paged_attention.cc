#include <pybind11/stl.h>

#include "arrays.h"
#include "bind.h"
#include "paged_attention.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

Array paged_attention_array(const Array& q, const Array& k, const Array& v, const Array& key_cache,
                            const Array& value_cache, const Array& block_tables, const Array& seq_lens_encoder,
                            const Array& seq_lens_decoder, const Array& seq_lens_this_time, float scale, int64_t window,
                            bool batch_invariant, const OptionalArray& key_scales, const OptionalArray& value_scales) {
  const char* op = "paged_attention";
  const auto writable = [&](const char* name, const OptionalArray& array) {
    return array ? writable_view(op, name, *array) : Tensor{};
  };
  const Array out = empty_like(q);
  Call{paged_attention,
       view(op, "q", q),
       view(op, "k", k),
       view(op, "v", v),
       writable_view(op, "key_cache", key_cache),
       writable_view(op, "value_cache", value_cache),
       view(op, "block_tables", block_tables),
       view(op, "seq_lens_encoder", seq_lens_encoder),
       view(op, "seq_lens_decoder", seq_lens_decoder),
       view(op, "seq_lens_this_time", seq_lens_this_time),
       scale,
       window,
       result(out),
       batch_invariant,
       writable("key_scales", key_scales),
       writable("value_scales", value_scales)};
  return out;
}

}  // namespace

FUSIONKIT_BIND(paged_attention) {
  module.def("paged_attention", &paged_attention_array, "q"_a, "k"_a, "v"_a, "key_cache"_a, "value_cache"_a,
             "block_tables"_a, "seq_lens_encoder"_a, "seq_lens_decoder"_a, "seq_lens_this_time"_a, "scale"_a,
             "window"_a, "batch_invariant"_a = false, "key_scales"_a = py::none(), "value_scales"_a = py::none(),
             "-> out; the caches are updated in place");
}

}  // namespace fusionkit_cpu
