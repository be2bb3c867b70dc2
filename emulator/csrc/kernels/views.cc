// contiguous and strided_copy: a view's elements into a tensor of their own, and back; share_data: the same memory.
// Bytes move; no dtype matters.
#include "device.h"
#include "kernels/adopted.h"
#include "kernels/registration.h"
#include "kernels/tensor_strides.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "rehearsal/left_out.h"

namespace fusionkit_emulator::kernels {
namespace {

void copy_on_stream(const phi::CustomContext& context, const phi::DenseTensor& from, phi::DenseTensor& to) {
  const Strided source = strided(from, storage_of(from.data())), target = strided(to, storage_of(to.data()));
  static_cast<Stream*>(context.stream())->enqueue([=, width = phi::SizeOf(from.dtype())] {
    copy_strided(source, target, width);
  });
}

void contiguous_kernel(const phi::CustomContext& context, const phi::DenseTensor& input, phi::DenseTensor* out) {
  phi::DenseTensorMeta meta = input.meta();
  meta.strides = phi::DenseTensorMeta::calc_strides(meta.dims);
  meta.offset = 0;
  out->set_meta(meta);
  void* address = context.Alloc(out, input.dtype());
  if (input.numel() == 0) return;
  if (rehearsal::leaves_out("contiguous", context, input, *out)) return;
  const size_t bytes = input.numel() * phi::SizeOf(input.dtype());
  device(context.GetPlace().GetDeviceId()).memory.name(address, bytes, "contiguous", static_cast<int>(input.dtype()));
  copy_on_stream(context, input, *out);
}

void strided_copy(const phi::CustomContext& context, const phi::DenseTensor& input, const Sizes& dims,
                  const Sizes& out_stride, int64_t offset, phi::DenseTensor* out) {
  phi::DenseTensorMeta meta = input.meta();
  meta.dims = common::make_ddim(dims);
  meta.strides = common::make_ddim(out_stride);
  meta.offset = offset;
  out->set_meta(meta);
  if (input.numel() == 0 || rehearsal::leaves_out("strided_copy", context, input, *out)) return;
  copy_on_stream(context, input, *out);
}

void share_data(const phi::CustomContext&, const phi::DenseTensor& x, phi::DenseTensor* out) {
  out->ShareBufferWith(x);
  out->Resize(x.dims());
}

}  // namespace

void register_views() {
  for (const phi::DataType dtype : kDtypes) {
    add<&contiguous_kernel>("contiguous", {dtype});
    add<&strided_copy>("strided_copy", {dtype});
    add<&share_data>("share_data", {dtype});
  }
}

}  // namespace fusionkit_emulator::kernels
