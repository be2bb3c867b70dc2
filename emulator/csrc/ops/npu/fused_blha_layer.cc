// fused_blha_layer_op: a whole decoder layer over a paged cache, prefill and decode rows in one step. The vendor keeps
// the tokens between the layers of a step for itself: `hidden` is read by the first layer alone, and only the last
// gives a result, the last token of each row.
#include <map>
#include <mutex>

#include "contract/decoder_layer.h"
#include "ops/limits.h"
#include "ops/operand.h"
#include "ops/vendor.h"
#include "paddle/phi/common/float16.h"

namespace fusionkit_emulator::ops {
namespace {

constexpr char kOp[] = "fused_blha_layer_op";
constexpr int kBegin = 1, kEnd = 2;

// From the first layer of a step to its last; touched on the stream alone.
struct Step {
  std::vector<float> tokens, cos, sin;
  std::vector<StepRow> rows;
  std::vector<int64_t> block_tables;
};

std::shared_ptr<Step> step_of(const Tensor& hidden, int flag) {
  static std::mutex mutex;
  static std::map<int, std::shared_ptr<Step>> steps;  // by device
  const std::lock_guard lock(mutex);
  std::shared_ptr<Step>& step = steps[hidden.place().GetDeviceId()];
  if (flag == kBegin) step = std::make_shared<Step>();
  Limits(kOp).require(step != nullptr, "flag", "1 in the first layer of a step", std::to_string(flag));
  return step;
}

std::vector<float> rounded(std::vector<float> values) {
  for (float& each : values) each = static_cast<float>(phi::dtype::float16(each));
  return values;
}

// Fills a step with its rows: of encoder_lengths tokens from position 0, or one after decoder_lengths cached ones.
void begin(Step& step, const Operand& hidden, int64_t hidden_size, const std::vector<int64_t>& encoder_lengths,
           const std::vector<int64_t>& decoder_lengths, const std::vector<int64_t>& lengths,
           const std::vector<float>& rope, const Shape& rope_shape) {
  const int64_t max_position = rope_shape[2], head_dim = rope_shape[4];
  int64_t token = 0;
  for (size_t row = 0; row < encoder_lengths.size(); ++row) {
    const bool prefill = encoder_lengths[row] > 0;
    const int64_t wanted = prefill ? encoder_lengths[row] : decoder_lengths[row] > 0 ? 1 : 0;
    if (lengths[row] != wanted)
      throw std::invalid_argument("seq_lens_this_time of row " + std::to_string(row) + " must be " +
                                  std::to_string(wanted) + ", got " + std::to_string(lengths[row]));
    step.rows.push_back({token, wanted, prefill ? 0 : decoder_lengths[row]});
    for (int64_t i = 0; i < wanted; ++i) {
      const int64_t position = step.rows.back().first_position + i;
      if (position >= max_position)
        throw std::invalid_argument("positions must be below " + std::to_string(max_position) +
                                    ", the length of rope_emb, got " + std::to_string(position));
      const int64_t batch = rope_shape[1] == 1 ? 0 : static_cast<int64_t>(row);
      const float* cos = rope.data() + (batch * max_position + position) * head_dim;
      step.cos.insert(step.cos.end(), cos, cos + head_dim);
      const float* sin = cos + rope_shape[1] * max_position * head_dim;
      step.sin.insert(step.sin.end(), sin, sin + head_dim);
    }
    token += wanted;
  }
  if (token * hidden_size != hidden.size)
    throw std::invalid_argument("hidden must hold " + std::to_string(token) + " tokens, got " +
                                std::to_string(hidden.size / hidden_size));
  // The device holds angles in float16.
  step.cos = rounded(std::move(step.cos));
  step.sin = rounded(std::move(step.sin));
  step.tokens = hidden.floats();
}

// Writes the step's keys (part 0) or values (part 1) into the cache, and returns the whole cache.
std::vector<float> cached(const Operand& into, const PagedCache& cache, const Step& step,
                          const std::vector<float>& projected, int64_t width, int part) {
  std::vector<float> values = into.floats();
  const int64_t from = width - (2 - part) * cache.num_key_value_heads * cache.head_dim;
  for (size_t row = 0; row < step.rows.size(); ++row)
    for (int64_t i = 0; i < step.rows[row].num_tokens; ++i)
      for (int64_t head = 0; head < cache.num_key_value_heads; ++head) {
        const float* source =
            projected.data() + (step.rows[row].first_token + i) * width + from + head * cache.head_dim;
        std::copy_n(source, cache.head_dim,
                    values.data() + cache.offset(static_cast<int64_t>(row), step.rows[row].first_position + i, head));
      }
  into.store(values);
  return into.floats();
}

void refuse_quantised(const Limits& limits, std::initializer_list<std::pair<const char*, const OptionalTensor*>> all) {
  for (const auto& [name, tensor] : all)
    limits.require(!*tensor, name, "None: int8 weights are not emulated", "a tensor");
}

void check_products(const Limits& limits,
                    std::initializer_list<std::tuple<const char*, const Tensor*, bool, int64_t, int64_t>> all) {
  for (const auto& [name, tensor, transposed, in, out] : all) {
    limits.tensor(name, *tensor);
    limits.dtype(name, *tensor, {DataType::FLOAT16});
    limits.shape(name, *tensor, transposed ? Shape{out, in} : Shape{in, out}, transposed ? "[out, in]" : "[in, out]");
  }
}

Tensors layer(const Tensor& hidden, const Tensor& norm_weight, const Tensor& qkv_weight, const OptionalTensor& qkv_bias,
              const OptionalTensor& qkv_deq_scale, const Tensor& out_linear_weight,
              const OptionalTensor& out_linear_shift, const OptionalTensor& out_linear_smooth,
              const OptionalTensor& out_linear_deq_scale, const Tensor& ffn_norm_weight, const Tensor& ffn1_weight,
              const OptionalTensor& ffn1_deq_scale, const Tensor& ffn2_weight, const OptionalTensor& ffn2_shift,
              const OptionalTensor& ffn2_smooth, const OptionalTensor& ffn2_deq_scale, const Tensor& rope_emb,
              const Tensor& cache_k, const Tensor& cache_v, const Tensor& seq_lens_encoder,
              const Tensor& seq_lens_decoder, const Tensor& seq_lens_this_time, const Tensor& block_tables, int flag,
              int max_seq_len, int block_size, float epsilon, float, float, float, float, bool trans_qkv,
              bool trans_out_linear, bool trans_ffn1, bool trans_ffn2, bool use_neox_style, bool use_alibi) {
  const Limits limits(kOp);
  refuse_quantised(limits, {{"qkv_deq_scale", &qkv_deq_scale},
                            {"out_linear_shift", &out_linear_shift},
                            {"out_linear_smooth", &out_linear_smooth},
                            {"out_linear_deq_scale", &out_linear_deq_scale},
                            {"ffn1_deq_scale", &ffn1_deq_scale},
                            {"ffn2_shift", &ffn2_shift},
                            {"ffn2_smooth", &ffn2_smooth},
                            {"ffn2_deq_scale", &ffn2_deq_scale}});
  limits.require(!use_alibi, "use_alibi", "False: alibi with attention fails on the device", "True");
  limits.tensor("hidden", hidden);
  limits.dtype("hidden", hidden, {DataType::FLOAT16});
  limits.num_dims("hidden", hidden, 2, "[tokens, hidden_size]");
  limits.tensor("cache_k", cache_k);
  limits.dtype("cache_k", cache_k, {DataType::FLOAT16});
  limits.num_dims("cache_k", cache_k, 4, "[blocks, kv_heads, block_size, head_dim]");
  const Shape cache_shape = cache_k.shape();
  limits.require(cache_shape[2] == block_size, "block_size", "that of cache_k, " + std::to_string(cache_shape[2]),
                 std::to_string(block_size));
  limits.tensor("cache_v", cache_v);
  limits.same_dtype("cache_v", cache_v, "cache_k", cache_k);
  limits.shape("cache_v", cache_v, cache_shape, "as cache_k");
  limits.tensor("rope_emb", rope_emb);
  limits.dtype("rope_emb", rope_emb, {DataType::FLOAT32});
  limits.num_dims("rope_emb", rope_emb, 5, "[2, batch_size, seq_len, 1, head_dim]");
  const int64_t size = hidden.shape()[1], kv_heads = cache_shape[1], head_dim = cache_shape[3];
  const Shape rope_shape = rope_emb.shape();
  const int64_t rows = seq_lens_encoder.numel();
  limits.require(rope_shape[0] == 2 && rope_shape[3] == 1 && rope_shape[4] == head_dim &&
                     (rope_shape[1] == 1 || rope_shape[1] == rows) && rope_shape[2] <= max_seq_len,
                 "rope_emb", "[2, batch_size, at most max_seq_len, 1, head_dim]", shown(rope_shape));
  limits.require(size % head_dim == 0 && (size / head_dim) % kv_heads == 0, "hidden",
                 "[tokens, num_heads * head_dim], num_heads a multiple of the cache's kv_heads", shown(hidden.shape()));
  for (const auto& [name, tensor] : {std::pair("norm_weight", norm_weight), {"ffn_norm_weight", ffn_norm_weight}}) {
    limits.tensor(name, tensor);
    limits.dtype(name, tensor, {DataType::FLOAT16});
    limits.shape(name, tensor, {size}, "[hidden_size]");
  }
  for (const auto& [name, tensor] : {std::pair("seq_lens_encoder", seq_lens_encoder),
                                     {"seq_lens_decoder", seq_lens_decoder},
                                     {"seq_lens_this_time", seq_lens_this_time},
                                     {"block_tables", block_tables}}) {
    limits.tensor(name, tensor);
    limits.dtype(name, tensor, {DataType::INT32, DataType::INT64});
    limits.require(tensor.shape()[0] == rows, name, "of " + std::to_string(rows) + " rows", shown(tensor.shape()));
  }
  const int64_t width = size + 2 * kv_heads * head_dim;
  const int64_t inner = ffn2_weight.numel() / size;
  check_products(limits, {{"qkv_weight", &qkv_weight, trans_qkv, size, width},
                          {"out_linear_weight", &out_linear_weight, trans_out_linear, size, size},
                          {"ffn1_weight", &ffn1_weight, trans_ffn1, size, 2 * inner},
                          {"ffn2_weight", &ffn2_weight, trans_ffn2, inner, size}});
  const std::shared_ptr<Step> step = step_of(hidden, flag);
  const Tensor made = result(hidden, {flag == kEnd ? rows : 1, size}, DataType::FLOAT16);
  launch(kOp, hidden,
         [=, hidden = Operand(hidden), norm = Operand(norm_weight), qkv = Operand(qkv_weight),
          bias = qkv_bias ? Operand(*qkv_bias) : Operand(), out_linear = Operand(out_linear_weight),
          ffn_norm = Operand(ffn_norm_weight), ffn1 = Operand(ffn1_weight), ffn2 = Operand(ffn2_weight),
          rope = Operand(rope_emb), cache_k = Operand(cache_k), cache_v = Operand(cache_v),
          encoder = Operand(seq_lens_encoder), decoder = Operand(seq_lens_decoder),
          this_time = Operand(seq_lens_this_time), tables = Operand(block_tables), made = Operand(made)] {
           if (flag == kBegin) {
             begin(*step, hidden, size, encoder.integers(), decoder.integers(), this_time.integers(), rope.floats(),
                   rope_shape);
             step->block_tables = tables.integers();
           }
           const DecoderLayer layer{size,
                                    size / head_dim,
                                    kv_heads,
                                    head_dim,
                                    inner,
                                    epsilon,
                                    use_neox_style,
                                    norm.floats(),
                                    matrix(qkv, trans_qkv, size),
                                    bias.size == 0 ? std::vector<float>() : bias.floats(),
                                    matrix(out_linear, trans_out_linear, size),
                                    ffn_norm.floats(),
                                    matrix(ffn1, trans_ffn1, size),
                                    matrix(ffn2, trans_ffn2, inner)};
           const PagedCache cache{kv_heads, block_size, head_dim, tables.size / rows, step->block_tables};
           const std::vector<float> qkv_values = projected(layer, step->tokens, step->cos, step->sin);
           const std::vector<float> keys = cached(cache_k, cache, *step, qkv_values, width, 0);
           const std::vector<float> values = cached(cache_v, cache, *step, qkv_values, width, 1);
           step->tokens =
               rounded(decoder_layer(layer, step->tokens, qkv_values, step->rows, cache, keys.data(), values.data()));
           if (flag != kEnd) return made.store_nan();
           std::vector<float> last(made.size, std::numeric_limits<float>::quiet_NaN());  // of a row that rests
           for (size_t row = 0; row < step->rows.size(); ++row) {
             const StepRow& each = step->rows[row];
             if (each.num_tokens == 0) continue;
             std::copy_n(step->tokens.data() + (each.first_token + each.num_tokens - 1) * size, size,
                         last.data() + row * size);
           }
           made.store(last);
         });
  return {made};
}

std::vector<Shape> shapes(const Shape& hidden, const Shape&, const Shape&, const OptionalShape&, const OptionalShape&,
                          const Shape&, const OptionalShape&, const OptionalShape&, const OptionalShape&, const Shape&,
                          const Shape&, const OptionalShape&, const Shape&, const OptionalShape&, const OptionalShape&,
                          const OptionalShape&, const Shape&, const Shape&, const Shape&, const Shape&, const Shape&,
                          const Shape&, const Shape&) {
  return {{-1, hidden[1]}};
}

std::vector<DataType> dtypes(const DataType& hidden, const DataType&, const DataType&, const OptionalDataType&,
                             const OptionalDataType&, const DataType&, const OptionalDataType&, const OptionalDataType&,
                             const OptionalDataType&, const DataType&, const DataType&, const OptionalDataType&,
                             const DataType&, const OptionalDataType&, const OptionalDataType&, const OptionalDataType&,
                             const DataType&, const DataType&, const DataType&, const DataType&, const DataType&,
                             const DataType&, const DataType&) {
  return {hidden};
}

const Vendor registered("npu", [] {
  const auto optional = [](const char* name) { return paddle::Optional(name); };
  paddle::OpMetaInfoBuilder(kOp, 0)
      .Inputs({"hidden",
               "norm_weight",
               "qkv_weight",
               optional("qkv_bias"),
               optional("qkv_deq_scale"),
               "out_linear_weight",
               optional("out_linear_shift"),
               optional("out_linear_smooth"),
               optional("out_linear_deq_scale"),
               "ffn_norm_weight",
               "ffn1_weight",
               optional("ffn1_deq_scale"),
               "ffn2_weight",
               optional("ffn2_shift"),
               optional("ffn2_smooth"),
               optional("ffn2_deq_scale"),
               "rope_emb",
               "cache_k",
               "cache_v",
               "seq_lens_encoder",
               "seq_lens_decoder",
               "seq_lens_this_time",
               "block_tables"})
      .Outputs({"hidden_out"})
      .Attrs({"flag: int", "max_seq_len: int", "block_size: int", "epsilon: float", "qkv_quant_scale: float",
              "out_linear_quant_scale: float", "ffn1_quant_scale: float", "ffn2_quant_scale: float", "trans_qkv: bool",
              "trans_out_linear: bool", "trans_ffn1: bool", "trans_ffn2: bool", "use_neox_style: bool",
              "use_alibi: bool"})
      .SetKernelFn(PD_KERNEL(layer))
      .SetInferShapeFn(PD_INFER_SHAPE(shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(dtypes));
});

}  // namespace
}  // namespace fusionkit_emulator::ops
