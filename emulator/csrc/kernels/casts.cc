// cast: one conversion, rounded to nearest even. (Paddle 3.3's CPU kernel rounds float32 to float16 wrongly.)
#include <cstring>
#include <stdexcept>
#include <vector>

#include "device.h"
#include "kernels/adopted.h"
#include "kernels/dtype.h"
#include "kernels/registration.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "rehearsal/left_out.h"

namespace fusionkit_emulator::kernels {
namespace {

using phi::DataType;

// Calls visit with a pointer of the dtype's C++ type.
template <typename Visit>
void with_type(DataType dtype, void* data, Visit visit) {
  switch (dtype) {
    case DataType::BOOL:
      return visit(static_cast<bool*>(data));
    case DataType::INT8:
      return visit(static_cast<int8_t*>(data));
    case DataType::UINT8:
      return visit(static_cast<uint8_t*>(data));
    case DataType::INT16:
      return visit(static_cast<int16_t*>(data));
    case DataType::INT32:
      return visit(static_cast<int32_t*>(data));
    case DataType::INT64:
      return visit(static_cast<int64_t*>(data));
    case DataType::FLOAT16:
      return visit(static_cast<phi::dtype::float16*>(data));
    case DataType::BFLOAT16:
      return visit(static_cast<phi::dtype::bfloat16*>(data));
    case DataType::FLOAT32:
      return visit(static_cast<float*>(data));
    case DataType::FLOAT64:
      return visit(static_cast<double*>(data));
    default:
      throw std::invalid_argument("cast: dtype must be real or bool, got " + phi::DataTypeToString(dtype));
  }
}

void convert(const void* from, DataType from_dtype, int64_t size, void* to, DataType to_dtype) {
  with_type(from_dtype, const_cast<void*>(from), [&](const auto* source) {
    with_type(to_dtype, to, [&](auto* target) {
      using Target = std::remove_pointer_t<decltype(target)>;
      for (int64_t i = 0; i < size; ++i) target[i] = static_cast<Target>(source[i]);
    });
  });
}

void cast(const phi::CustomContext& context, const phi::DenseTensor& x, DataType out_dtype, phi::DenseTensor* out) {
  const DataType from_dtype = x.dtype();
  const int64_t size = x.numel();
  const void* from = size == 0 ? nullptr : storage_of(x.data());
  void* address = context.Alloc(out, out_dtype);
  if (size == 0) return;
  if (rehearsal::leaves_out("cast", context, x, *out)) return;
  device(context.GetPlace().GetDeviceId())
      .memory.name(address, size * phi::SizeOf(out_dtype), "cast", static_cast<int>(out_dtype));
  void* to = storage_of(address);
  static_cast<Stream*>(context.stream())->enqueue([=] {
    if (from != to) return convert(from, from_dtype, size, to, out_dtype);
    std::vector<char> copy(size * phi::SizeOf(from_dtype));  // in place, where elements may grow
    std::memcpy(copy.data(), from, copy.size());
    convert(copy.data(), from_dtype, size, to, out_dtype);
  });
}

}  // namespace

void register_casts() {
  for (const DataType dtype : kDtypes) add<&cast>("cast", {dtype});
}

}  // namespace fusionkit_emulator::kernels
