#include "packed_weight.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "blocked_matmul.h"
#include "check.h"
#include "onednn_layout.h"
#include "onednn_matmul.h"

namespace fusionkit_cpu {
namespace {

constexpr char kMagic[8] = {'F', 'K', 'W', 'E', 'I', 'G', 'H', 'T'};
constexpr uint32_t kFormat = 1;
constexpr uint64_t kAlignment = 64;

struct Header {
  char magic[8];
  uint32_t format;
  DType arithmetic;
  char maker[51];  // library, version and instruction set: who can read the layout
  int64_t in_features, out_features;
  uint64_t layout_bytes;  // oneDNN's description of the layout, after the header
  uint64_t data_offset;
  uint64_t num_bytes;
};

std::string current_maker() {
  if (!uses_onednn()) return std::string("blocked ") + isa();
  const auto identity = onednn_identity();
  return "onednn " + std::to_string(identity[0]) + "." + std::to_string(identity[1]) + "." +
         std::to_string(identity[2]) + " isa " + std::to_string(identity[3]);
}

// Null when the own loop multiplies it.
std::shared_ptr<const WeightLayout> layout_of(const Matrix& weight, DType arithmetic) {
  if (!uses_onednn() || weight.rows == 0 || weight.cols == 0) return nullptr;
  return onednn_weight_layout(compute_dtype(arithmetic), weight.rows, weight.cols);
}

Header describe(const Matrix& weight, DType arithmetic, const WeightLayout* layout) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.format = kFormat;
  header.arithmetic = arithmetic;
  const std::string maker = current_maker();
  std::memcpy(header.maker, maker.data(), std::min(maker.size(), sizeof header.maker - 1));
  header.in_features = weight.rows;
  header.out_features = weight.cols;
  header.layout_bytes = layout == nullptr ? 0 : layout->blob.size();
  header.data_offset = (sizeof header + header.layout_bytes + kAlignment - 1) / kAlignment * kAlignment;
  const size_t data_bytes =
      layout == nullptr ? blocked_packed_size(arithmetic, weight.rows, weight.cols) : layout->num_bytes;
  header.num_bytes = header.data_offset + data_bytes;
  return header;
}

Header read_header(const void* packed) {
  Header header;
  std::memcpy(&header, packed, sizeof header);
  return header;
}

const uint8_t* bytes_at(const void* packed, uint64_t offset) { return static_cast<const uint8_t*>(packed) + offset; }

}  // namespace

size_t packed_size(const Matrix& weight, DType arithmetic) {
  return describe(weight, arithmetic, layout_of(weight, arithmetic).get()).num_bytes;
}

void pack(const Matrix& weight, DType arithmetic, void* packed) {
  const auto layout = layout_of(weight, arithmetic);
  const Header header = describe(weight, arithmetic, layout.get());
  auto* bytes = static_cast<uint8_t*>(packed);
  std::memset(bytes, 0, header.data_offset);
  std::memcpy(bytes, &header, sizeof header);
  if (!layout) return blocked_pack(weight, arithmetic, bytes + header.data_offset);
  std::copy(layout->blob.begin(), layout->blob.end(), bytes + sizeof header);
  onednn_pack(weight, arithmetic, *layout, compute_dtype(arithmetic), bytes + header.data_offset);
}

void require_packed(const char* op, const void* packed, size_t packed_size, DType arithmetic, int64_t in_features,
                    int64_t out_features) {
  const std::string size = std::to_string(packed_size) + " bytes";
  if (packed == nullptr || packed_size < sizeof(Header)) fail(op, "packed", "a weight from pack_weight", size);
  const Header header = read_header(packed);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0 || header.format != kFormat)
    fail(op, "packed", "a weight from pack_weight of this version", "other bytes. Pack the weight again");
  if (header.num_bytes != packed_size)
    fail(op, "packed", "whole, " + std::to_string(header.num_bytes) + " bytes", size + ". Pack the weight again");
  if (header.data_offset < sizeof header || header.data_offset > header.num_bytes ||
      header.layout_bytes > header.data_offset - sizeof header)
    fail(op, "packed", "a weight from pack_weight", "a damaged header. Pack the weight again");
  if (header.maker != current_maker())
    fail(op, "packed", "made by \"" + current_maker() + "\"",
         std::string("\"") + header.maker + "\". Pack the weight again on this machine");
  if (header.in_features != in_features || header.out_features != out_features)
    fail(op, "packed", "a weight of [" + std::to_string(in_features) + ", " + std::to_string(out_features) + "]",
         "[" + std::to_string(header.in_features) + ", " + std::to_string(header.out_features) + "]");
  if (header.arithmetic != arithmetic && header.arithmetic != DType::kFloat32)
    fail(op, "packed", std::string("packed as x's dtype ") + dtype_name(arithmetic) + " or as float32",
         dtype_name(header.arithmetic));
}

void product_packed(const Matrix& a, const void* packed, const Matrix& c, const float* bias) {
  if (c.rows == 0 || c.cols == 0) return;
  const Header header = read_header(packed);
  const uint8_t* data = bytes_at(packed, header.data_offset);
  // A weight without elements leaves the bias: a product of the ordinary kind.
  if (a.cols == 0) return product(a, contiguous(nullptr, a.dtype, 0, c.cols), a.dtype, c, {bias});
  if (header.layout_bytes == 0) return blocked_matmul_packed(a, header.arithmetic, data, c, {bias});
  const uint8_t* layout_at = bytes_at(packed, sizeof header);
  const std::vector<uint8_t> layout(layout_at, layout_at + header.layout_bytes);
  const DType compute = compute_dtype(header.arithmetic);
  const bool a_ready = a.dtype == compute && onednn_takes(a);
  const bool c_ready = c.dtype == DType::kFloat32 || c.dtype == compute;
  const Buffer a_memory(a_ready ? 0 : a.rows * a.cols * element_size(compute));
  const Buffer c_memory(c_ready ? 0 : c.rows * c.cols * sizeof(float));
  const Matrix sums = c_ready ? c : contiguous(c_memory.as<void>(), DType::kFloat32, c.rows, c.cols);
  onednn_matmul_packed(a_ready ? a : converted(a, DType::kFloat32, compute, a_memory.as<void>()), layout, data, sums,
                       bias, false);
  if (!c_ready) convert(sums, DType::kFloat32, nullptr, c);
}

}  // namespace fusionkit_cpu
