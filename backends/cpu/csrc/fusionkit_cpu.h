// The CPU kernel library: fused LLM ops over host memory. It knows no framework, allocates no result and keeps no
// state but the thread count, the instruction set and what flush_caches reads.
//
// Every function checks its arguments and throws std::invalid_argument whose text reads
// "<op>: <argument> must be <rule>, got <value>". Storage is float32, bfloat16 or float16; arithmetic and accumulation
// are float32 (products of bfloat16 storage may use the bfloat16 units, which accumulate in float32), with one rounding
// at each output. Inputs may be strided; outputs are contiguous. A default-constructed Tensor stands for an absent one.
//
// Reductions have a fixed order for a given thread count, so equal calls give equal bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#if defined(__GNUC__)
#define FUSIONKIT_API __attribute__((visibility("default")))
#else
#define FUSIONKIT_API
#endif

namespace fusionkit_cpu {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16, kBool, kInt32, kInt64 };

FUSIONKIT_API size_t dtype_size(DType dtype);
FUSIONKIT_API const char* dtype_name(DType dtype);

constexpr int kMaxDims = 8;

// A view of host memory. Strides count elements, may be 0 (broadcast) or negative.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int num_dims = 0;
  int64_t shape[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};
  bool present = false;  // an empty tensor is present and may have null data

  explicit operator bool() const { return present; }
};

// ---- Machine -------------------------------------------------------------------------------------------------------

// "avx512", "avx2" or "portable": the best that the processor has, unless FUSIONKIT_CPU_ISA names a lower one.
// An unknown name, or one that the processor lacks, throws.
FUSIONKIT_API const char* isa();
FUSIONKIT_API std::vector<std::string> available_isas();
FUSIONKIT_API void set_isa(const std::string& name);  // for tests; not safe while kernels run

// Threads used by each kernel: 1 until whoever loads the library says more.
FUSIONKIT_API int num_threads();
FUSIONKIT_API void set_num_threads(int n);

// Matrix products: "onednn" after load_onednn(path of libdnnl.so.3) returned true, else "blocked" (our own loop).
FUSIONKIT_API bool load_onednn(const std::string& path);
FUSIONKIT_API const char* matmul_library();

// For benchmarks: the bandwidth of a read:write mix, on num_threads() threads. Reads every byte of `source` once while
// it sets every byte of `target` to 1, in proportion to their sizes; both contiguous, of any dtype, either may be
// empty. non_temporal writes past the caches and asks for a target aligned to 64 bytes. Which way is the faster depends
// on the sizes and on what the caches hold: the ceiling is the better of the two.
FUSIONKIT_API void stream(const Tensor& source, const Tensor& target, bool non_temporal);

// For benchmarks of cold data: reads four times the last-level cache, from memory that it keeps, so that no cache of
// the threads' cores holds what was used before.
FUSIONKIT_API void flush_caches();

// ---- Normalisation -------------------------------------------------------------------------------------------------
// x [..., H]; weight [H], dtype of x or float32; rstd [rows] float32, optional output saved for the backward.
// dweight has weight's dtype, accumulated in float32.

FUSIONKIT_API void rms_norm(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y, const Tensor& rstd);
FUSIONKIT_API void rms_norm_grad(const Tensor& x, const Tensor& weight, const Tensor& rstd, const Tensor& dy,
                                 const Tensor& dx, const Tensor& dweight);

// residual_out = round(x + residual) in residual's dtype; y = rms_norm(residual_out) in x's dtype.
FUSIONKIT_API void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float epsilon,
                                const Tensor& y, const Tensor& residual_out, const Tensor& rstd);
// dresidual_out may be absent (zero). dx and dresidual hold the same gradient, each in its own dtype; both optional.
FUSIONKIT_API void add_rms_norm_grad(const Tensor& residual_out, const Tensor& weight, const Tensor& rstd,
                                     const Tensor& dy, const Tensor& dresidual_out, const Tensor& dx,
                                     const Tensor& dresidual, const Tensor& dweight);

// ---- Rotary position embedding -------------------------------------------------------------------------------------
// x [B, S, heads, D]; cos, sin [max_position, D / 2] float32; position_ids [B, S] int32 / int64, or absent (0..S-1).
// A position outside [0, max_position) throws. inverse=true rotates by the negative angle: the gradient.

FUSIONKIT_API void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& position_ids,
                        bool interleaved, bool inverse, const Tensor& y);

// ---- SwiGLU --------------------------------------------------------------------------------------------------------

FUSIONKIT_API void swiglu(const Tensor& gate, const Tensor& up, const Tensor& y);
FUSIONKIT_API void swiglu_grad(const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate,
                               const Tensor& dup);

// ---- Attention -----------------------------------------------------------------------------------------------------
// q [B, Sq, heads, D]; k, v [B, Skv, kv_heads, D]; heads a multiple of kv_heads; out as q; lse [B, heads, Sq] float32.
// causal is aligned bottom-right: query i sees keys j <= i + Skv - Sq.
// attn_mask [B or 1, heads or 1, Sq, Skv], optional: bool (true = attend) or floating (added to the scaled scores; only
// -inf drops). startend_row_indices [B, kv_heads or 1, Skv, 1 | 2 | 4] int32, optional, as Paddle's
// flashmask_attention. A row with nothing to attend to gives zeros, lse = -inf and zero gradients. out and lse are
// exact to one rounding.

struct AttentionMask {
  bool causal = false;
  Tensor attn_mask;
  Tensor startend_row_indices;
};

FUSIONKIT_API void flash_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionMask& mask,
                                   float scale, const Tensor& out, const Tensor& lse);
// dlse [B, heads, Sq] float32 may be absent (zero).
FUSIONKIT_API void flash_attention_grad(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                        const Tensor& lse, const AttentionMask& mask, float scale, const Tensor& dout,
                                        const Tensor& dlse, const Tensor& dq, const Tensor& dk, const Tensor& dv);

// Tokens of this step without padding: q [T, heads, D]; k, v [T, kv_heads, D], T = sum(seq_lens_this_time). Rows b with
// seq_lens_encoder[b] > 0 are in prefill (positions 0..this_time-1), the others in decode (positions decoder[b]...).
// caches [blocks, kv_heads, block_size, D], updated in place; block_tables [B, max_blocks] int32; seq_lens_* [B] int32.
FUSIONKIT_API void paged_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_cache,
                                   const Tensor& value_cache, const Tensor& block_tables,
                                   const Tensor& seq_lens_encoder, const Tensor& seq_lens_decoder,
                                   const Tensor& seq_lens_this_time, float scale, const Tensor& out);

// ---- Products ------------------------------------------------------------------------------------------------------
// x [..., K]; weight [K, N], dtype of x or float32 (then rounded to x's dtype: the arithmetic is the activations');
// bias [N], dtype of x or float32, optional. y [..., N], dtype of x, accumulated in float32.

FUSIONKIT_API void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y);
// dx, dweight (weight's dtype), dbias (bias' dtype): each optional.
FUSIONKIT_API void linear_grad(const Tensor& x, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                               const Tensor& dweight, const Tensor& dbias);

// A weight laid out for the product once, for inference. Immutable and shareable between threads. The bytes are one
// block, so that a framework can hold them as a uint8 tensor: they are valid for the library, instruction set and
// version that made them, which the block's header names and every use checks.
FUSIONKIT_API size_t packed_weight_size(const Tensor& weight, DType dtype);
FUSIONKIT_API void pack_weight(const Tensor& weight, DType dtype, void* packed);  // 64-byte aligned
FUSIONKIT_API void linear_packed(const Tensor& x, const void* packed, size_t packed_size, int64_t in_features,
                                 int64_t out_features, const Tensor& bias, const Tensor& y);

// dweight = x^T dy, or with `accumulate` += it: then dweight is float32. x [rows, in_features], dy [rows,
// out_features], dweight [in_features, out_features] in x's dtype or float32.
FUSIONKIT_API void weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dweight, bool accumulate);

// to = from, rounded to to's dtype; both [rows, cols] of floating dtypes.
FUSIONKIT_API void cast(const Tensor& from, const Tensor& to);

// loss_sum [1] float32 = sum over labels != ignore_index of logsumexp(x W) - (x W)[label]; num_tokens [1] int64.
// labels [tokens] int64 / int32, x [tokens, K], weight [K, V]. The logits are never held whole. When dx or dweight is
// present it receives d(loss_sum): the products are taken while a chunk of logits is at hand.
FUSIONKIT_API void linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& labels,
                                        int64_t ignore_index, const Tensor& loss_sum, const Tensor& num_tokens,
                                        const Tensor& dx, const Tensor& dweight);

// ---- AdamW ---------------------------------------------------------------------------------------------------------
// In place, contiguous float32 param, moment1 and moment2; grad [like param] floating. With g = grad_scale * grad:
//   moment1 = beta1 * moment1 + one_minus_beta1 * g;  moment2 = beta2 * moment2 + one_minus_beta2 * g^2
//   param = decay * param - step_size * moment1 / (sqrt(moment2) * root_factor + epsilon)

struct AdamWFactors {
  float grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, root_factor, epsilon, decay, step_size;
};

FUSIONKIT_API void adamw(const Tensor& param, const Tensor& grad, const Tensor& moment1, const Tensor& moment2,
                         const AdamWFactors& factors);

// ---- Chain rule ----------------------------------------------------------------------------------------------------

// y = x * factor[0] in place: the chain rule for the gradients above. x floating; factor [1] float32.
FUSIONKIT_API void scale(const Tensor& x, const Tensor& factor);
FUSIONKIT_API void scale(const Tensor& x, const Tensor& factor, const Tensor& y);  // y = x * factor

}  // namespace fusionkit_cpu
