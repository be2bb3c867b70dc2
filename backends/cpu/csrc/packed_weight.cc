#include "packed_weight.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

#include "blocked_matmul.h"
#include "check.h"
#include "onednn_layout.h"
#include "onednn_matmul.h"
#include "panels.h"

namespace fusionkit_cpu {
namespace {

constexpr char kMagic[8] = {'F', 'K', 'W', 'E', 'I', 'G', 'H', 'T'};
constexpr uint32_t kFormat = 2;
constexpr uint64_t kAlignment = 64;

struct Header {
  char magic[8];
  uint32_t format;
  DType arithmetic;
  char maker[51];  // library, version and instruction set: who can read the layout
  int64_t in_features, out_features;
  int64_t panel_cols, panel_depth;  // 0 where oneDNN alone can read the layout
  uint64_t layout_bytes;            // oneDNN's description of the layout, after the header; 0 for own panels
  uint64_t data_offset;
  uint64_t num_bytes;
};

std::string onednn_maker() {
  const auto identity = onednn_identity();
  return "onednn " + std::to_string(identity[0]) + "." + std::to_string(identity[1]) + "." +
         std::to_string(identity[2]) + " isa " + std::to_string(identity[3]);
}

std::string own_maker() { return std::string("blocked ") + isa(); }

// How a weight is packed: as oneDNN prefers, or in own panels where there is no `onednn`.
struct Layout {
  std::shared_ptr<const WeightLayout> onednn;
  std::optional<PanelFormat> panels;
  size_t num_bytes;
};

Layout layout_of(const Matrix& weight, DType arithmetic, bool batch_invariant) {
  if (uses_onednn() && weight.rows > 0 && weight.cols > 0) {
    auto layout = onednn_weight_layout(compute_dtype(arithmetic), weight.rows, weight.cols);
    if (layout->panels || !batch_invariant) return {layout, layout->panels, layout->num_bytes};
  }
  const PanelFormat panels = blocked_panels(arithmetic, weight.rows);
  return {nullptr, panels, static_cast<size_t>(panels.count(weight.cols) * panels.panel_bytes())};
}

Header describe(const Matrix& weight, DType arithmetic, const Layout& layout) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.format = kFormat;
  header.arithmetic = arithmetic;
  const std::string maker = layout.onednn ? onednn_maker() : own_maker();
  std::memcpy(header.maker, maker.data(), std::min(maker.size(), sizeof header.maker - 1));
  header.in_features = weight.rows;
  header.out_features = weight.cols;
  if (layout.panels) header.panel_cols = layout.panels->cols, header.panel_depth = layout.panels->depth;
  header.layout_bytes = layout.onednn ? layout.onednn->blob.size() : 0;
  header.data_offset = (sizeof header + header.layout_bytes + kAlignment - 1) / kAlignment * kAlignment;
  header.num_bytes = header.data_offset + layout.num_bytes;
  return header;
}

Header read_header(const void* packed) {
  Header header;
  std::memcpy(&header, packed, sizeof header);
  return header;
}

bool holds_panels(const Header& header) {
  const PanelFormat panels{compute_dtype(header.arithmetic), header.panel_cols, header.panel_depth};
  if (!FUSIONKIT_DISPATCH(packs_panels, panels) || panels.depth < header.in_features) return false;
  const uint64_t data_bytes = header.num_bytes - header.data_offset;
  return panels.panel_bytes() == 0 || header.out_features == 0 ||
         static_cast<uint64_t>(panels.count(header.out_features)) <= data_bytes / panels.panel_bytes();
}

// Own panels are read wherever they were made for the instruction set; oneDNN's layouts where oneDNN multiplies.
void require_maker(const char* op, const Header& header) {
  const bool own = header.layout_bytes == 0;
  const std::string maker = own || !uses_onednn() ? own_maker() : onednn_maker();
  if (header.maker != maker)
    fail(op, "packed", "made by \"" + maker + "\"",
         std::string("\"") + header.maker + "\". Pack the weight again on this machine");
}

const uint8_t* bytes_at(const void* packed, uint64_t offset) { return static_cast<const uint8_t*>(packed) + offset; }

}  // namespace

size_t packed_size(const Matrix& weight, DType arithmetic, bool batch_invariant) {
  return describe(weight, arithmetic, layout_of(weight, arithmetic, batch_invariant)).num_bytes;
}

void pack(const Matrix& weight, DType arithmetic, bool batch_invariant, void* packed) {
  const Layout layout = layout_of(weight, arithmetic, batch_invariant);
  const Header header = describe(weight, arithmetic, layout);
  auto* bytes = static_cast<uint8_t*>(packed);
  std::memset(bytes, 0, header.data_offset);
  std::memcpy(bytes, &header, sizeof header);
  if (!layout.onednn) return pack_panels(weight, arithmetic, *layout.panels, bytes + header.data_offset);
  std::copy(layout.onednn->blob.begin(), layout.onednn->blob.end(), bytes + sizeof header);
  onednn_pack(weight, arithmetic, *layout.onednn, compute_dtype(arithmetic), bytes + header.data_offset);
}

void require_packed(const char* op, const void* packed, size_t packed_size, DType arithmetic, int64_t in_features,
                    int64_t out_features, bool batch_invariant) {
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
  if ((header.panel_cols != 0 || header.layout_bytes == 0) && !holds_panels(header))
    fail(op, "packed", "a weight from pack_weight", "a damaged header. Pack the weight again");
  require_maker(op, header);
  if (batch_invariant && header.panel_cols == 0)
    fail(op, "packed", "packed for batch invariant products",
         std::string("a layout that ") + header.maker +
             " alone reads. Pack the weight inside fusionkit.use_batch_invariant()");
  if (header.in_features != in_features || header.out_features != out_features)
    fail(op, "packed", "a weight of [" + std::to_string(in_features) + ", " + std::to_string(out_features) + "]",
         "[" + std::to_string(header.in_features) + ", " + std::to_string(header.out_features) + "]");
  if (header.arithmetic != arithmetic && header.arithmetic != DType::kFloat32)
    fail(op, "packed", std::string("packed as x's dtype ") + dtype_name(arithmetic) + " or as float32",
         dtype_name(header.arithmetic));
}

void product_packed(const Matrix& a, const void* packed, const Matrix& c, const float* bias, bool batch_invariant) {
  if (c.rows == 0 || c.cols == 0) return;
  const Header header = read_header(packed);
  const uint8_t* data = bytes_at(packed, header.data_offset);
  // A weight without elements leaves the bias: a product of the ordinary kind.
  if (a.cols == 0) return product(a, contiguous(nullptr, a.dtype, 0, c.cols), a.dtype, c, {bias});
  const DType compute = compute_dtype(header.arithmetic);
  if (header.layout_bytes == 0 || batch_invariant)
    return blocked_matmul_packed(a, {compute, header.panel_cols, header.panel_depth}, data, c, {bias});
  const uint8_t* layout_at = bytes_at(packed, sizeof header);
  const std::vector<uint8_t> layout(layout_at, layout_at + header.layout_bytes);
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
