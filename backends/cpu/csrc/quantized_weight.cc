#include "quantized_weight.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "blocked_matmul.h"
#include "check.h"
#include "fused_linear_packed.h"
#include "kernels/quantized_product.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace {

constexpr char kMagic[8] = {'F', 'K', 'Q', 'U', 'A', 'N', 'T', 'S'};
constexpr uint32_t kFormat = 1;
constexpr int64_t kSmallestGroup = 16;
constexpr int64_t kMostFeatures = int64_t{1} << 31;  // so that no size overflows

// As backends/cpu/quantized_panels.py writes it.
struct Header {
  char magic[8];
  uint32_t format;
  uint8_t bits, has_minimums, scale_bytes, unused;
  int64_t in_features, out_features, group_size;
  uint64_t num_bytes;
  char padding[16];
};
static_assert(sizeof(Header) == 64);

Header read_header(const void* packed) {
  Header header;
  std::memcpy(&header, packed, sizeof header);
  return header;
}

QuantizedFormat format_of(const Header& header) {
  return {header.bits, header.has_minimums != 0, header.scale_bytes == 2 ? DType::kFloat16 : DType::kFloat32,
          header.in_features, header.group_size};
}

bool is_sound(const Header& header) {
  const auto fits = [](int64_t size) { return size >= 0 && size < kMostFeatures; };
  return (header.bits == 8 || header.bits == 4) && header.has_minimums <= 1 &&
         (header.scale_bytes == 2 || header.scale_bytes == 4) && fits(header.in_features) &&
         fits(header.out_features) && fits(header.group_size) && header.group_size > 0 &&
         (header.group_size % kSmallestGroup == 0 || header.group_size >= header.in_features);
}

uint64_t num_bytes(const Header& header) {
  return sizeof header + static_cast<uint64_t>(quantized_panels(header.out_features) * panel_bytes(format_of(header)));
}

// `a` in float32 with contiguous rows; `memory` holds what is converted.
Matrix in_float32(const Matrix& a, const Buffer& memory) {
  if (a.dtype == DType::kFloat32 && a.col_stride == 1) return a;
  const Matrix to = contiguous(memory.as<void>(), DType::kFloat32, a.rows, a.cols);
  convert(a, DType::kFloat32, nullptr, to);
  return to;
}

const float* offset(const float* bias, int64_t cols) { return bias == nullptr ? nullptr : bias + cols; }

void multiply_in_registers(const Matrix& a, const QuantizedFormat& format, const char* panels, const Matrix& c,
                           const float* bias) {
  const Buffer memory(a.rows * a.cols * sizeof(float));
  const Matrix rows = in_float32(a, memory);
  parallel_for(quantized_panels(c.cols), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t col = i * kQuantizedCols, col_end = std::min(col + kQuantizedCols, c.cols);
      FUSIONKIT_DISPATCH(multiply_quantized, rows, format, panels + i * panel_bytes(format),
                         slice_cols(c, col, col_end), offset(bias, col));
    }
  });
}

// Panels of floats made at a time: below glibc's limit for memory that is returned to the system at once.
constexpr int64_t kValuesBytes = int64_t{8} << 20;

void multiply_dequantized(const Matrix& a, const QuantizedFormat& format, const char* panels, const Matrix& c,
                          const float* bias) {
  const PanelFormat own = blocked_panels(DType::kFloat32, format.depth);
  const int64_t num_panels = quantized_panels(c.cols), values = kQuantizedCols * format.depth;
  const int64_t step = std::clamp<int64_t>(kValuesBytes / int64_t{sizeof(float)} / values, 1, num_panels);
  const Buffer memory(step * values * sizeof(float));
  for (int64_t first = 0; first < num_panels; first += step) {
    const int64_t count = std::min(step, num_panels - first);
    parallel_for(count, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        FUSIONKIT_DISPATCH(dequantize_panel, format, panels + (first + i) * panel_bytes(format),
                           memory.as<float>() + i * values);
    });
    const int64_t col = first * kQuantizedCols, col_end = std::min(col + count * kQuantizedCols, c.cols);
    blocked_matmul_packed(a, own, memory.as<void>(), slice_cols(c, col, col_end), {offset(bias, col)});
  }
}

}  // namespace

int64_t most_rows_in_registers() { return 8; }

bool is_quantized(const void* packed, size_t packed_size) {
  return packed != nullptr && packed_size >= sizeof(Header) && std::memcmp(packed, kMagic, sizeof kMagic) == 0;
}

void require_quantized(const char* op, const void* packed, size_t packed_size, int64_t in_features,
                       int64_t out_features) {
  const Header header = read_header(packed);
  if (header.format != kFormat)
    fail(op, "packed", "a weight from pack_weight of this version", "another format. Pack the weight again");
  if (!is_sound(header)) fail(op, "packed", "a weight from pack_weight", "a damaged header. Pack the weight again");
  if (header.num_bytes != num_bytes(header) || header.num_bytes != packed_size)
    fail(op, "packed", "whole, " + std::to_string(num_bytes(header)) + " bytes",
         std::to_string(packed_size) + " bytes. Pack the weight again");
  if (header.in_features != in_features || header.out_features != out_features)
    fail(op, "packed", "a weight of [" + std::to_string(in_features) + ", " + std::to_string(out_features) + "]",
         "[" + std::to_string(header.in_features) + ", " + std::to_string(header.out_features) + "]");
}

QuantizedPanels panels_of(const void* packed) {
  return {format_of(read_header(packed)), static_cast<const char*>(packed) + sizeof(Header)};
}

void product_quantized(const Matrix& a, const void* packed, const Matrix& c, const float* bias) {
  if (c.rows == 0 || c.cols == 0) return;
  // A weight without elements leaves the bias: a product of the ordinary kind.
  if (a.cols == 0) return product(a, contiguous(nullptr, a.dtype, 0, c.cols), a.dtype, c, {bias});
  const auto [format, panels] = panels_of(packed);
  if (a.rows <= most_rows_in_registers()) return multiply_in_registers(a, format, panels, c, bias);
  multiply_dequantized(a, format, panels, c, bias);
}

}  // namespace fusionkit_cpu
