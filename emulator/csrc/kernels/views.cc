// contiguous and strided_copy: a view's elements into a tensor of their own, and back. Bytes move; no dtype matters.
#include <cstring>
#include <vector>

#include "device.h"
#include "kernels/adopted.h"
#include "kernels/registration.h"
#include "paddle/phi/backends/custom/custom_context.h"

namespace fusionkit_emulator::kernels {
namespace {

using Sizes = std::vector<int64_t>;

struct View {
  char* storage;
  Sizes strides;  // in elements
};

void copy(const Sizes& dims, size_t axis, const View& from, const View& to, int64_t from_at, int64_t to_at,
          size_t width) {
  if (axis == dims.size()) {
    std::memcpy(to.storage + to_at * width, from.storage + from_at * width, width);
    return;
  }
  const bool rows = axis + 1 == dims.size() && from.strides[axis] == 1 && to.strides[axis] == 1;
  if (rows) {
    std::memcpy(to.storage + to_at * width, from.storage + from_at * width, dims[axis] * width);
    return;
  }
  for (int64_t i = 0; i < dims[axis]; ++i)
    copy(dims, axis + 1, from, to, from_at + i * from.strides[axis], to_at + i * to.strides[axis], width);
}

void copy_on_stream(const phi::CustomContext& context, const phi::DenseTensor& from, phi::DenseTensor& to) {
  const auto sizes = [](const phi::DDim& dims) { return common::vectorize(dims); };
  const View source{static_cast<char*>(storage_of(from.data())), sizes(from.strides())};
  const View target{static_cast<char*>(storage_of(to.data())), sizes(to.strides())};
  static_cast<Stream*>(context.stream())
      ->enqueue([=, dims = sizes(from.dims()), width = phi::SizeOf(from.dtype())] {
        copy(dims, 0, source, target, 0, 0, width);
      });
}

void contiguous(const phi::CustomContext& context, const phi::DenseTensor& input, phi::DenseTensor* out) {
  phi::DenseTensorMeta meta = input.meta();
  meta.strides = phi::DenseTensorMeta::calc_strides(meta.dims);
  meta.offset = 0;
  out->set_meta(meta);
  void* address = context.Alloc(out, input.dtype());
  if (input.numel() == 0) return;
  const size_t bytes = input.numel() * phi::SizeOf(input.dtype());
  device(context.GetPlace().GetDeviceId()).memory.name(address, bytes, "contiguous");
  copy_on_stream(context, input, *out);
}

void strided_copy(const phi::CustomContext& context, const phi::DenseTensor& input, const Sizes& dims,
                  const Sizes& out_stride, int64_t offset, phi::DenseTensor* out) {
  phi::DenseTensorMeta meta = input.meta();
  meta.dims = common::make_ddim(dims);
  meta.strides = common::make_ddim(out_stride);
  meta.offset = offset;
  out->set_meta(meta);
  if (input.numel() > 0) copy_on_stream(context, input, *out);
}

}  // namespace

void register_views() {
  for (const phi::DataType dtype : kDtypes) {
    add<&contiguous>("contiguous", {dtype});
    add<&strided_copy>("strided_copy", {dtype});
  }
}

}  // namespace fusionkit_emulator::kernels
