// A panel's codes become floats: for rows that are no finite numbers, whose products no integers hold.
#include "kernels/panels.h"
#include "kernels/quantized_form.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

// The values of a group for a vector of columns, at its place in the panels of floats.
template <class Form>
void dequantize_group(const QuantizedFormat& format, const char* group, const char* block, int64_t k, int64_t end,
                      int64_t col, float* values) {
  const Vec scale = load_scale<Form>(format, group, block, col, 0);
  const Vec minimum = Form::kHasMinimums ? load_scale<Form>(format, group, block, col, 1) : Vec{};
  const auto* at = reinterpret_cast<const uint32_t*>(group + scale_bytes(format)) + col;
  for (; k < end; at += kQuantizedCols) {
    UintVec words;
    __builtin_memcpy(&words, at, sizeof words);
    for (int i = 0; i < Form::kPerWord && k < end; ++i, ++k) {
      const Vec code = Form::code(words, Form::bit_of(i));
      // One rounding, or none if the product is exact.
      store(values + (col / kPanelCols * format.depth + k) * kPanelCols + col % kPanelCols,
            Form::kHasMinimums ? fma(code, scale, minimum) : code * scale);
    }
  }
}

}  // namespace

void dequantize_panel(const QuantizedFormat& format, const void* panel, float* values) {
  visit_form(format, [&](auto form) {
    const char* group = static_cast<const char*>(panel) + groups_at(format);
    for (int64_t k = 0; k < format.depth; k += format.group_size) {
      const char* block = static_cast<const char*>(panel) + k / kScaleBlock * block_bytes(format);
      const int64_t left = format.depth - k, size = left < format.group_size ? left : format.group_size;
      for (int64_t col = 0; col < kQuantizedCols; col += kLanes)
        dequantize_group<decltype(form)>(format, group, block, k, k + size, col, values);
      group += group_bytes(format, size);
    }
  });
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
