// remove_padding(x, seqlen) -> the tokens of all rows one after the other, and rebuild_padding_v2(tmp_out, cum_offsets,
// seq_lens_decoder, seq_lens_encoder; max_input_length) -> the last token's values of each row.
#include <cstring>
#include <limits>
#include <numeric>

#include "ops/limits.h"
#include "ops/operand.h"
#include "ops/vendor.h"
#include "paddle/phi/common/data_type.h"

namespace fusionkit_emulator::ops {
namespace {

constexpr char kRemove[] = "remove_padding", kRebuild[] = "rebuild_padding_v2";

void check_lengths(const Limits& limits, const char* name, const Tensor& tensor, int64_t rows) {
  limits.tensor(name, tensor);
  limits.dtype(name, tensor, {DataType::INT32, DataType::INT64});
  limits.require(tensor.numel() == rows, name, "one number for each of " + std::to_string(rows) + " rows",
                 shown(tensor.shape()));
}

// The size of the result depends on the lengths: they are copied to the host, as on the device.
std::vector<int64_t> on_host(const Tensor& lengths) {
  const Tensor host = lengths.copy_to(phi::CPUPlace(), true);
  if (host.dtype() == DataType::INT64) return {host.data<int64_t>(), host.data<int64_t>() + host.numel()};
  return {host.data<int32_t>(), host.data<int32_t>() + host.numel()};
}

Tensors remove(const Tensor& x, const Tensor& seqlen) {
  const Limits limits(kRemove);
  limits.tensor("x", x);
  limits.num_dims("x", x, 2, "[batch_size, padded_length]");
  const int64_t rows = x.shape()[0], columns = x.shape()[1];
  check_lengths(limits, "seqlen", seqlen, rows);
  const std::vector<int64_t> lengths = on_host(seqlen);
  for (const int64_t each : lengths)
    limits.require(0 <= each && each <= columns, "seqlen", "in [0, " + std::to_string(columns) + "]",
                   std::to_string(each));
  const Tensor made = result(x, {std::accumulate(lengths.begin(), lengths.end(), int64_t{0})}, x.dtype());
  launch(kRemove, x, [=, x = Operand(x), y = Operand(made)] {
    const size_t width = phi::SizeOf(x.dtype);
    const char* from = static_cast<const char*>(x.storage);
    char* to = static_cast<char*>(y.storage);
    for (const int64_t each : lengths) {
      if (each > 0) std::memcpy(to, from, each * width);
      from += columns * width;
      to += each * width;
    }
  });
  return {made};
}

Tensors rebuild(const Tensor& tmp_out, const Tensor& cum_offsets, const Tensor& seq_lens_decoder,
                const Tensor& seq_lens_encoder, int max_input_length) {
  const Limits limits(kRebuild);
  limits.tensor("tmp_out", tmp_out);
  limits.dtype("tmp_out", tmp_out, {DataType::FLOAT32, DataType::FLOAT16, DataType::BFLOAT16});
  limits.num_dims("tmp_out", tmp_out, 2, "[tokens, hidden_size]");
  const int64_t rows = cum_offsets.numel(), tokens = tmp_out.shape()[0], size = tmp_out.shape()[1];
  check_lengths(limits, "cum_offsets", cum_offsets, rows);
  check_lengths(limits, "seq_lens_decoder", seq_lens_decoder, rows);
  check_lengths(limits, "seq_lens_encoder", seq_lens_encoder, rows);
  const Tensor made = result(tmp_out, {rows, size}, tmp_out.dtype());
  launch(kRebuild, tmp_out,
         [=, from = Operand(tmp_out), offsets = Operand(cum_offsets), decoder = Operand(seq_lens_decoder),
          encoder = Operand(seq_lens_encoder), to = Operand(made)] {
           const std::vector<float> values = from.floats();
           const std::vector<int64_t> offset = offsets.integers(), cached = decoder.integers(),
                                      length = encoder.integers();
           std::vector<float> last(to.size, std::numeric_limits<float>::quiet_NaN());  // of a row that rests
           for (int64_t row = 0; row < rows; ++row) {
             if (length[row] == 0 && cached[row] == 0) continue;
             const int64_t token = row * max_input_length - offset[row] + std::max<int64_t>(length[row] - 1, 0);
             if (token < 0 || token >= tokens)
               throw std::out_of_range("cum_offsets of row " + std::to_string(row) + " leads to token " +
                                       std::to_string(token) + " of " + std::to_string(tokens));
             std::copy_n(values.data() + token * size, size, last.data() + row * size);
           }
           to.store(last);
         });
  return {made};
}

std::vector<Shape> remove_shapes(const Shape&, const Shape&) { return {{-1}}; }
std::vector<DataType> remove_dtypes(const DataType& x, const DataType&) { return {x}; }
std::vector<Shape> rebuild_shapes(const Shape& tmp_out, const Shape& cum_offsets, const Shape&, const Shape&) {
  return {{cum_offsets[0], tmp_out[1]}};
}
std::vector<DataType> rebuild_dtypes(const DataType& tmp_out, const DataType&, const DataType&, const DataType&) {
  return {tmp_out};
}

const Vendor registered("npu", [] {
  paddle::OpMetaInfoBuilder(kRemove, 0)
      .Inputs({"x", "seqlen"})
      .Outputs({"x_remove_padding"})
      .SetKernelFn(PD_KERNEL(remove))
      .SetInferShapeFn(PD_INFER_SHAPE(remove_shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(remove_dtypes));
  paddle::OpMetaInfoBuilder(kRebuild, 0)
      .Inputs({"tmp_out", "cum_offsets", "seq_lens_decoder", "seq_lens_encoder"})
      .Outputs({"out"})
      .Attrs({"max_input_length: int"})
      .SetKernelFn(PD_KERNEL(rebuild))
      .SetInferShapeFn(PD_INFER_SHAPE(rebuild_shapes))
      .SetInferDtypeFn(PD_INFER_DTYPE(rebuild_dtypes));
});

}  // namespace
}  // namespace fusionkit_emulator::ops
