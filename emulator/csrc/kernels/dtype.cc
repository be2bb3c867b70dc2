#include "kernels/dtype.h"

namespace fusionkit_emulator::kernels {
namespace {

template <typename Element>
void widen_from(const Element* from, int64_t size, float* to) {
  for (int64_t i = 0; i < size; ++i) to[i] = static_cast<float>(from[i]);
}

template <typename Element>
void round_to(const float* from, int64_t size, Element* to) {
  for (int64_t i = 0; i < size; ++i) to[i] = static_cast<Element>(from[i]);
}

}  // namespace

void widen(const void* from, phi::DataType dtype, int64_t size, float* to) {
  if (dtype == phi::DataType::FLOAT16) return widen_from(static_cast<const phi::dtype::float16*>(from), size, to);
  widen_from(static_cast<const phi::dtype::bfloat16*>(from), size, to);
}

void round(const float* from, int64_t size, phi::DataType dtype, void* to) {
  if (dtype == phi::DataType::FLOAT16) return round_to(from, size, static_cast<phi::dtype::float16*>(to));
  round_to(from, size, static_cast<phi::dtype::bfloat16*>(to));
}

}  // namespace fusionkit_emulator::kernels
