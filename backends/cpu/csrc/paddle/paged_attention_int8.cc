// fusionkit_paged_attention_int8: as fusionkit_paged_attention, with caches of int8 and the scales of their tokens,
// which are written in place too. Its inputs have the order of the op's own.
#include "host_view.h"
#include "paged_attention.h"

namespace fusionkit_paddle {
namespace {

constexpr char kOp[] = "fusionkit_paged_attention_int8";

Tensors forward(const paddle::Tensor& q, const paddle::Tensor& k, const paddle::Tensor& v, paddle::Tensor& key_cache,
                paddle::Tensor& value_cache, const paddle::Tensor& block_tables, const paddle::Tensor& seq_lens_encoder,
                const paddle::Tensor& seq_lens_decoder, const paddle::Tensor& seq_lens_this_time,
                paddle::Tensor& key_scales, paddle::Tensor& value_scales, float scale, int64_t window,
                bool batch_invariant) {
  const HostView view(kOp);
  const auto q_view = view("q", q);
  paddle::Tensor out = empty_like(q);
  fusionkit_cpu::paged_attention(q_view, view("k", k), view("v", v), view("key_cache", key_cache),
                                 view("value_cache", value_cache), view("block_tables", block_tables),
                                 view("seq_lens_encoder", seq_lens_encoder), view("seq_lens_decoder", seq_lens_decoder),
                                 view("seq_lens_this_time", seq_lens_this_time), scale, window, view("out", out),
                                 batch_invariant, view("key_scales", key_scales), view("value_scales", value_scales));
  return {out};
}

// The results that are written in place have no entry here.
std::vector<Shape> infer_shape(const Shape& q, const Shape&, const Shape&, const Shape&, const Shape&, const Shape&,
                               const Shape&, const Shape&, const Shape&, const Shape&, const Shape&, float, int64_t,
                               bool) {
  return {q};
}

std::vector<paddle::DataType> infer_dtype(const paddle::DataType& q, const paddle::DataType&, const paddle::DataType&,
                                          const paddle::DataType&, const paddle::DataType&, const paddle::DataType&,
                                          const paddle::DataType&, const paddle::DataType&, const paddle::DataType&,
                                          const paddle::DataType&, const paddle::DataType&) {
  return {q};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_paged_attention_int8)
    .Inputs({"q", "k", "v", "key_cache", "value_cache", "block_tables", "seq_lens_encoder", "seq_lens_decoder",
             "seq_lens_this_time", "key_scales", "value_scales"})
    .Outputs({"out", "key_cache_out", "value_cache_out", "key_scales_out", "value_scales_out"})
    .Attrs({"scale: float", "window: int64_t", "batch_invariant: bool"})
    .SetInplaceMap({{"key_cache", "key_cache_out"},
                    {"value_cache", "value_cache_out"},
                    {"key_scales", "key_scales_out"},
                    {"value_scales", "value_scales_out"}})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));
