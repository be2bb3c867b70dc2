#include "quantized_weight.h"

#include <atomic>
#include <cstring>
#include <string>

#include "check.h"
#include "fused_linear_packed.h"
#include "kernels/quantized_product.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace {

constexpr char kMagic[8] = {'F', 'K', 'Q', 'U', 'A', 'N', 'T', 'S'};
constexpr uint32_t kFormat = 1;
constexpr uint8_t kLevels = 1;                       // scale_bytes of scales in two levels
constexpr int64_t kMostFeatures = int64_t{1} << 31;  // so that no size overflows

struct Header {
  char magic[8];
  uint32_t format;
  uint8_t bits, has_minimums, scale_bytes, rounds_x;
  int64_t in_features, out_features, group_size;
  uint64_t num_bytes;
  char padding[16];
};
static_assert(sizeof(Header) == 64);

// Without the number of bytes, which follows from the rest.
Header header_of(const QuantizedWeight& weight) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.format = kFormat;
  header.bits = static_cast<uint8_t>(weight.bits);
  header.has_minimums = weight.minimums != nullptr;
  header.scale_bytes = weight.has_levels ? kLevels : static_cast<uint8_t>(element_size(weight.scale_dtype));
  header.rounds_x = weight.rounds_x;
  header.in_features = weight.in_features;
  header.out_features = weight.out_features;
  header.group_size = weight.group_size;
  return header;
}

QuantizedSource source_of(const QuantizedWeight& weight) {
  return {weight.codes, weight.row_stride, weight.col_stride, weight.codes_per_byte, weight.scales, weight.minimums};
}

Header read_header(const void* packed) {
  Header header;
  std::memcpy(&header, packed, sizeof header);
  return header;
}

QuantizedFormat format_of(const Header& header) {
  const DType scale_dtype = header.scale_bytes == 2 ? DType::kFloat16 : DType::kFloat32;
  const bool has_levels = header.scale_bytes == kLevels;
  return {header.bits, header.has_minimums != 0, scale_dtype, header.in_features, header.group_size,
          has_levels,  header.rounds_x != 0};
}

// Whether a block has several groups, and no part of one.
bool divides_blocks(int64_t group_size) {
  return group_size >= kShortRun && group_size < kScaleBlock && kScaleBlock % group_size == 0;
}

bool is_sound(const Header& header) {
  const auto fits = [](int64_t size) { return size >= 0 && size < kMostFeatures; };
  return (header.bits == 8 || header.bits == 4) && header.has_minimums <= 1 && header.rounds_x <= 1 &&
         fits(header.in_features) && fits(header.out_features) && fits(header.group_size) && header.group_size > 0 &&
         (header.scale_bytes == 2 || header.scale_bytes == 4 ||
          (header.scale_bytes == kLevels && divides_blocks(header.group_size))) &&
         (header.group_size % kRun == 0 || header.group_size == kShortRun || header.group_size >= header.in_features);
}

uint64_t num_bytes(const Header& header) {
  return sizeof header + static_cast<uint64_t>(quantized_panels(header.out_features) * panel_bytes(format_of(header)));
}

}  // namespace

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

void shorten_scales(QuantizedWeight* weight) {
  const bool has_groups = divides_blocks(weight->group_size) && weight->in_features > weight->group_size;
  if (weight->scale_dtype != DType::kFloat32 || !has_groups) return;
  std::atomic<bool> fit = true;
  const QuantizedFormat format = format_of(header_of(*weight));
  const QuantizedSource source = source_of(*weight);
  parallel_for(quantized_panels(weight->out_features), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end && fit; ++i)
      if (!FUSIONKIT_DISPATCH(panel_has_levels, source, format, weight->out_features, i * kQuantizedCols)) fit = false;
  });
  weight->has_levels = fit;
}

size_t quantized_size(const QuantizedWeight& weight) {
  const Header header = header_of(weight);
  if (!is_sound(header))
    fail("pack_weight", "weight", "of 8 or 4 bits, in groups of 16 or of a multiple of 32",
         std::to_string(weight.bits) + " bits in groups of " + std::to_string(weight.group_size));
  return num_bytes(header);
}

void pack_quantized(const QuantizedWeight& weight, void* packed) {
  Header header = header_of(weight);
  header.num_bytes = quantized_size(weight);
  std::memcpy(packed, &header, sizeof header);
  const QuantizedFormat format = format_of(header);
  const QuantizedSource source = source_of(weight);
  char* panels = static_cast<char*>(packed) + sizeof header;
  parallel_for(quantized_panels(weight.out_features), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      FUSIONKIT_DISPATCH(pack_quantized_panel, source, format, weight.out_features, i * kQuantizedCols,
                         panels + i * panel_bytes(format));
  });
}

}  // namespace fusionkit_cpu
