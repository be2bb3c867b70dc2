// fusionkit_decoder_layer: a layer of a decoder in one call, and the caches in place. Programs get it when they are
// loaded for the host: fusionkit_backends/cpu/passes.py says which operations it stands for. It makes their calls, in
// their order, so its bits are theirs. Each weight is a tensor, or the bytes of a packed one. For inference: it has no
// gradient.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "fused_linear.h"
#include "fused_linear_packed.h"
#include "fusion_add_rms_norm.h"
#include "fusion_rms_norm.h"
#include "fusion_rope.h"
#include "host_view.h"
#include "paged_attention.h"
#include "swiglu.h"

namespace fusionkit_paddle {
namespace {

using fusionkit_cpu::DType;
using View = fusionkit_cpu::Tensor;

constexpr char kOp[] = "fusionkit_decoder_layer";

struct Weight {
  View plain;
  const void* packed = nullptr;
  size_t num_bytes = 0;  // of the packed one
  View bias;
};

Weight weight_of(const char* argument, const paddle::Tensor& weight, const View& bias = {}) {
  const HostView view(kOp);
  if (weight.defined() && weight.dtype() == paddle::DataType::UINT8)
    return {{}, view.bytes(argument, weight), static_cast<size_t>(weight.numel()), bias};
  return {view(argument, weight), nullptr, 0, bias};
}

// The layer's arguments, all of them in host memory.
struct Layer {
  View residual, norm;  // no residual: x is the stream's beginning
  Weight qkv;
  View cos, sin, positions, key_cache, value_cache, block_tables, encoder, decoder, this_time;
  Weight out;
  View mlp_norm;
  Weight gate_up, down;
  float epsilon, scale;
  int64_t num_heads, num_kv_heads, intermediate_size, window;
  bool interleaved, products_invariant, attention_invariant;

  int64_t head_dim() const { return key_cache.shape[3]; }
  int64_t queries() const { return num_heads * head_dim(); }
  int64_t keys() const { return num_kv_heads * head_dim(); }
};

// Matrices with the rows of x that live as long as the call.
class Workspace {
 public:
  Workspace(const View& x, int64_t num_columns)
      : x_(x),
        memory_(empty({x.shape[0] * num_columns * static_cast<int64_t>(dtype_size(x.dtype))}, paddle::DataType::UINT8)),
        next_(static_cast<char*>(const_cast<void*>(HostView(kOp).bytes("memory", memory_)))) {}

  View take(int64_t num_columns) {
    View taken = x_;
    taken.data = next_;
    taken.shape[1] = taken.strides[0] = num_columns;
    taken.strides[1] = 1;
    next_ += taken.shape[0] * num_columns * dtype_size(taken.dtype);
    return taken;
  }

  // What was taken from here on is not used any more.
  void give_back(const View& first) { next_ = static_cast<char*>(first.data); }

 private:
  View x_;
  paddle::Tensor memory_;
  char* next_;
};

View columns(View matrix, int64_t begin, int64_t count) {
  matrix.data = static_cast<char*>(matrix.data) + begin * dtype_size(matrix.dtype);
  matrix.shape[1] = count;
  return matrix;
}

// [tokens, heads * head_dim] as [tokens, heads, head_dim].
View heads(View matrix, int64_t head_dim) {
  matrix.num_dims = 3;
  matrix.shape[1] /= head_dim;
  matrix.shape[2] = matrix.strides[1] = head_dim;
  matrix.strides[2] = 1;
  return matrix;
}

// With one axis of 1 in front.
View batch_of_one(const View& view) {
  View result = view;
  ++result.num_dims;
  result.shape[0] = 1;
  result.strides[0] = view.shape[0] * view.strides[0];
  for (int axis = 0; axis < view.num_dims; ++axis) {
    result.shape[axis + 1] = view.shape[axis];
    result.strides[axis + 1] = view.strides[axis];
  }
  return result;
}

void multiply(const View& x, const Weight& weight, const View& y, bool batch_invariant) {
  if (!weight.packed) return fusionkit_cpu::linear(x, weight.plain, weight.bias, y, batch_invariant);
  fusionkit_cpu::linear_packed(x, weight.packed, weight.num_bytes, x.shape[1], y.shape[1], weight.bias, y,
                               batch_invariant);
}

void turn(const Layer& layer, const View& x, const View& y) {
  fusionkit_cpu::rope(batch_of_one(heads(x, layer.head_dim())), layer.cos, layer.sin, batch_of_one(layer.positions),
                      layer.interleaved, false, batch_of_one(heads(y, layer.head_dim())));
}

// o = attention(norm(x + residual)); stream = x + residual, or x where the stream begins.
void attention_half(const Layer& layer, const View& x, Workspace* memory, View* stream, const View& o) {
  const View n = memory->take(x.shape[1]);
  if (layer.residual) {
    fusionkit_cpu::add_rms_norm(x, layer.residual, layer.norm, layer.epsilon, n, *stream, {});
  } else {
    fusionkit_cpu::rms_norm(x, layer.norm, layer.epsilon, n, {});
    *stream = x;
  }
  const View qkv = memory->take(layer.queries() + 2 * layer.keys());
  multiply(n, layer.qkv, qkv, layer.products_invariant);
  const View q = memory->take(layer.queries()), k = memory->take(layer.keys()), a = memory->take(layer.queries());
  turn(layer, columns(qkv, 0, layer.queries()), q);
  turn(layer, columns(qkv, layer.queries(), layer.keys()), k);
  const View v = columns(qkv, layer.queries() + layer.keys(), layer.keys());
  const int64_t size = layer.head_dim();
  fusionkit_cpu::paged_attention(heads(q, size), heads(k, size), heads(v, size), layer.key_cache, layer.value_cache,
                                 layer.block_tables, layer.encoder, layer.decoder, layer.this_time, layer.scale,
                                 layer.window, heads(a, size), layer.attention_invariant);
  multiply(a, layer.out, o, layer.products_invariant);
  memory->give_back(n);
}

void mlp_half(const Layer& layer, const View& o, const View& stream, Workspace* memory, const View& y,
              const View& residual_out) {
  const View m = memory->take(o.shape[1]);
  fusionkit_cpu::add_rms_norm(o, stream, layer.mlp_norm, layer.epsilon, m, residual_out, {});
  const int64_t inner = layer.intermediate_size;
  const View gate_up = memory->take(2 * inner), g = memory->take(inner);
  multiply(m, layer.gate_up, gate_up, layer.products_invariant);
  fusionkit_cpu::swiglu(columns(gate_up, 0, inner), columns(gate_up, inner, inner), g);
  multiply(g, layer.down, y, layer.products_invariant);
}

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string(kOp) + ": " + what + ". Load the program again");
}

Tensors run(const Layer& layer, const paddle::Tensor& x) {
  const View x_view = HostView(kOp)("x", x);
  require(x_view.num_dims == 2, "x must be [tokens, hidden_size]");
  require(layer.key_cache.num_dims == 4 && layer.head_dim() > 0, "key_cache must be [blocks, heads, size, head_dim]");
  require(layer.positions.num_dims == 1, "position_ids must be [tokens]");
  const int64_t hidden_size = x_view.shape[1];
  const int64_t attention = hidden_size + 2 * layer.queries() + 3 * layer.keys() + layer.queries();
  const int64_t mlp = hidden_size + 3 * layer.intermediate_size;
  Workspace memory(x_view, 2 * hidden_size + std::max(attention, mlp));
  View stream = memory.take(hidden_size);
  const View o = memory.take(hidden_size);
  attention_half(layer, x_view, &memory, &stream, o);
  const HostView view(kOp);
  paddle::Tensor y = empty_like(x), residual_out = empty_like(x);
  mlp_half(layer, o, stream, &memory, view("y", y), view("residual_out", residual_out));
  return {y, residual_out};
}

Tensors forward(const paddle::Tensor& x, const OptionalTensor& residual, const paddle::Tensor& norm,
                const paddle::Tensor& qkv, const OptionalTensor& qkv_bias, const paddle::Tensor& cos,
                const paddle::Tensor& sin, const paddle::Tensor& positions, paddle::Tensor& key_cache,
                paddle::Tensor& value_cache, const paddle::Tensor& block_tables, const paddle::Tensor& encoder,
                const paddle::Tensor& decoder, const paddle::Tensor& this_time, const paddle::Tensor& out,
                const OptionalTensor& out_bias, const paddle::Tensor& mlp_norm, const paddle::Tensor& gate_up,
                const paddle::Tensor& down, float epsilon, float scale, int64_t num_heads, int64_t num_kv_heads,
                int64_t intermediate_size, int64_t window, bool interleaved, bool products_invariant,
                bool attention_invariant) {
  const HostView view(kOp);
  view("x", x);
  const Layer layer{view("residual", residual),
                    view("norm", norm),
                    weight_of("qkv", qkv, view("qkv_bias", qkv_bias)),
                    view("cos", cos),
                    view("sin", sin),
                    view("position_ids", positions),
                    view("key_cache", key_cache),
                    view("value_cache", value_cache),
                    view("block_tables", block_tables),
                    view("seq_lens_encoder", encoder),
                    view("seq_lens_decoder", decoder),
                    view("seq_lens_this_time", this_time),
                    weight_of("out", out, view("out_bias", out_bias)),
                    view("mlp_norm", mlp_norm),
                    weight_of("gate_up", gate_up),
                    weight_of("down", down),
                    epsilon,
                    scale,
                    num_heads,
                    num_kv_heads,
                    intermediate_size,
                    window,
                    interleaved,
                    products_invariant,
                    attention_invariant};
  return run(layer, x);
}

// The results that are written in place have no entry here.
std::vector<Shape> infer_shape(const Shape& x, const OptionalShape&, const Shape&, const Shape&, const OptionalShape&,
                               const Shape&, const Shape&, const Shape&, const Shape&, const Shape&, const Shape&,
                               const Shape&, const Shape&, const Shape&, const Shape&, const OptionalShape&,
                               const Shape&, const Shape&, const Shape&, float, float, int64_t, int64_t, int64_t,
                               int64_t, bool, bool, bool) {
  return {x, x};
}

using Dtype = paddle::DataType;

std::vector<Dtype> infer_dtype(const Dtype& x, const OptionalDType&, const Dtype&, const Dtype&, const OptionalDType&,
                               const Dtype&, const Dtype&, const Dtype&, const Dtype&, const Dtype&, const Dtype&,
                               const Dtype&, const Dtype&, const Dtype&, const Dtype&, const OptionalDType&,
                               const Dtype&, const Dtype&, const Dtype&) {
  return {x, x};
}

}  // namespace
}  // namespace fusionkit_paddle

PD_BUILD_OP(fusionkit_decoder_layer)
    .Inputs({"x", paddle::Optional("residual"), "norm", "qkv", paddle::Optional("qkv_bias"), "cos", "sin",
             "position_ids", "key_cache", "value_cache", "block_tables", "seq_lens_encoder", "seq_lens_decoder",
             "seq_lens_this_time", "out", paddle::Optional("out_bias"), "mlp_norm", "gate_up", "down"})
    .Outputs({"y", "residual_out", "key_cache_out", "value_cache_out"})
    .Attrs({"epsilon: float", "scale: float", "num_heads: int64_t", "num_kv_heads: int64_t",
            "intermediate_size: int64_t", "window: int64_t", "interleaved: bool", "products_invariant: bool",
            "attention_invariant: bool"})
    .SetInplaceMap({{"key_cache", "key_cache_out"}, {"value_cache", "value_cache_out"}})
    .SetKernelFn(FUSIONKIT_KERNEL(fusionkit_paddle::forward))
    .SetInferShapeFn(PD_INFER_SHAPE(fusionkit_paddle::infer_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fusionkit_paddle::infer_dtype));
