#include "onednn_layout.h"

#include <map>
#include <mutex>
#include <tuple>

#include "buffer.h"
#include "onednn_describe.h"
#include "onednn_matmul.h"
#include "panels.h"
#include "product.h"

namespace fusionkit_cpu {
namespace {

using namespace onednn;

const int64_t* query_list(const MemoryDesc* desc, int what) {
  const int64_t* list = nullptr;
  check(api()->memory_desc_query(desc, what, &list), "memory_desc_query");
  return list;
}

// Blocks of 16 k x cols (x 2 k for bfloat16), first along k, then along the columns.
std::optional<PanelFormat> as_panels(const MemoryDesc* desc, DType compute) {
  const int step = compute == DType::kBFloat16 ? 2 : 1;
  int num_blocks = 0;
  check(api()->memory_desc_query(desc, kQueryNumInnerBlocks, &num_blocks), "memory_desc_query");
  if (num_blocks != 1 + step) return std::nullopt;
  const int64_t* blocks = query_list(desc, kQueryInnerBlocks);
  const int64_t* axes = query_list(desc, kQueryInnerAxes);
  if (axes[0] != 0 || axes[1] != 1 || (step == 2 && (axes[2] != 0 || blocks[2] != 2))) return std::nullopt;
  const PanelFormat panels{compute, blocks[1], query_list(desc, kQueryPaddedDims)[0]};
  const int64_t* strides = query_list(desc, kQueryStrides);
  const bool by_panel = strides[0] == blocks[0] * step * panels.cols && strides[1] == panels.depth * panels.cols;
  if (!by_panel || !FUSIONKIT_DISPATCH(packs_panels, panels)) return std::nullopt;
  return panels;
}

WeightLayout preferred_layout(DType compute, int64_t rows, int64_t cols) {
  // The number of rows of x that the layout is chosen for; it is valid for any.
  constexpr int64_t kTokens = 64;
  const ThreadCount threads;
  const auto a = describe(contiguous(nullptr, compute, kTokens, rows));
  const auto b = describe_any(compute, rows, cols);
  const auto c = describe(contiguous(nullptr, compute, kTokens, cols));
  const auto matmul = matmul_desc(a.get(), b.get(), nullptr, c.get(), false);
  const MemoryDesc* chosen = api()->primitive_desc_query_md(matmul.get(), kQueryWeightsDesc, 0);
  size_t size = 0;
  check(api()->memory_desc_get_blob(nullptr, &size, chosen), "memory_desc_get_blob");
  WeightLayout layout{std::vector<uint8_t>(size), api()->memory_desc_get_size(chosen), as_panels(chosen, compute)};
  check(api()->memory_desc_get_blob(layout.blob.data(), &size, chosen), "memory_desc_get_blob");
  return layout;
}

void reorder(const Matrix& b, const WeightLayout& layout, void* packed) {
  const ThreadCount threads;
  const Key key = Key('p', threads).add(b).add(layout.blob);
  const auto operation = cached(key, [&] {
    std::vector<Owned<MemoryDesc>> descs;
    descs.push_back(describe(b));
    descs.push_back(describe_blob(layout.blob));
    auto desc = reorder_desc(descs[0].get(), descs[1].get());
    return std::make_shared<const Operation>(std::move(desc), std::vector<int>{kArgSrc, kArgDst}, std::move(descs));
  });
  operation->run({b.data, packed});
}

}  // namespace

std::shared_ptr<const WeightLayout> onednn_weight_layout(DType compute, int64_t rows, int64_t cols) {
  constexpr size_t kMaxLayouts = 512;  // as for primitives: a full map starts afresh
  static std::mutex mutex;
  static auto& layouts = *new std::map<std::tuple<DType, int64_t, int64_t>, std::shared_ptr<const WeightLayout>>;
  const std::lock_guard<std::mutex> lock(mutex);
  if (layouts.size() >= kMaxLayouts) layouts.clear();
  auto& layout = layouts[{compute, rows, cols}];
  if (!layout) layout = std::make_shared<const WeightLayout>(preferred_layout(compute, rows, cols));
  return layout;
}

void onednn_pack(const Matrix& b, DType round_to, const WeightLayout& layout, DType compute, void* packed) {
  if (layout.panels) return pack_panels(b, round_to, *layout.panels, packed);
  if (b.dtype == compute && round_to == compute && onednn_takes(b)) return reorder(b, layout, packed);
  const Buffer rounded(b.rows * b.cols * element_size(compute));
  reorder(converted(b, round_to, compute, rounded.as<void>()), layout, packed);
}

}  // namespace fusionkit_cpu
