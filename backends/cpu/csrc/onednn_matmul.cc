#include "onednn_matmul.h"

#include "onednn_operation.h"

namespace fusionkit_cpu {
namespace {

using namespace onednn;

Owned<MemoryDesc> describe(const Matrix& m) {
  const int64_t dims[2] = {m.rows, m.cols};
  const bool is_vector = m.rows == 1 || m.cols == 1;
  const int64_t strides[2] = {is_vector ? m.cols : m.row_stride, is_vector ? 1 : m.col_stride};
  MemoryDesc* desc = nullptr;
  check(api()->memory_desc_create_with_strides(&desc, 2, dims,
                                               m.dtype == DType::kFloat32 ? kDataFloat32 : kDataBFloat16, strides),
        "memory_desc_create_with_strides");
  return {desc, api()->memory_desc_destroy};
}

Owned<MemoryDesc> describe_preferred(DType dtype, int64_t rows, int64_t cols) {
  const int64_t dims[2] = {rows, cols};
  MemoryDesc* desc = nullptr;
  check(api()->memory_desc_create_with_tag(&desc, 2, dims, dtype == DType::kFloat32 ? kDataFloat32 : kDataBFloat16,
                                           kTagAny),
        "memory_desc_create_with_tag");
  return {desc, api()->memory_desc_destroy};
}

Owned<MemoryDesc> describe_layout(const std::vector<uint8_t>& layout) {
  MemoryDesc* desc = nullptr;
  check(api()->memory_desc_create_with_blob(&desc, layout.data()), "memory_desc_create_with_blob");
  return {desc, api()->memory_desc_destroy};
}

// Scratch memory belongs to the call: one primitive may then run in several threads at once.
Owned<Attr> attributes(bool accumulate) {
  Attr* attr = nullptr;
  check(api()->primitive_attr_create(&attr), "primitive_attr_create");
  Owned<Attr> owned(attr, api()->primitive_attr_destroy);
  check(api()->primitive_attr_set_scratchpad_mode(attr, kScratchpadUser), "primitive_attr_set_scratchpad_mode");
  if (!accumulate) return owned;
  PostOps* post_ops = nullptr;
  check(api()->post_ops_create(&post_ops), "post_ops_create");
  Owned<PostOps> owned_ops(post_ops, api()->post_ops_destroy);
  check(api()->post_ops_append_sum(post_ops, 1.0f, 0, kDataFloat32), "post_ops_append_sum");
  check(api()->primitive_attr_set_post_ops(attr, post_ops), "primitive_attr_set_post_ops");
  return owned;
}

Owned<PrimitiveDesc> matmul_desc(const MemoryDesc* a, const MemoryDesc* b, const MemoryDesc* bias, const MemoryDesc* c,
                                 bool accumulate) {
  PrimitiveDesc* desc = nullptr;
  check(api()->matmul_primitive_desc_create(&desc, engine(), a, b, bias, c, attributes(accumulate).get()),
        "matmul_primitive_desc_create");
  return {desc, api()->primitive_desc_destroy};
}

Owned<PrimitiveDesc> reorder_desc(const MemoryDesc* from, const MemoryDesc* to) {
  PrimitiveDesc* desc = nullptr;
  check(api()->reorder_primitive_desc_create(&desc, from, engine(), to, engine(), attributes(false).get()),
        "reorder_primitive_desc_create");
  return {desc, api()->primitive_desc_destroy};
}

std::shared_ptr<const Operation> make_matmul(const Matrix& a, Owned<MemoryDesc> b, const Matrix& c, int64_t cols,
                                             bool has_bias, bool accumulate) {
  std::vector<Owned<MemoryDesc>> descs;
  descs.push_back(describe(a));
  descs.push_back(std::move(b));
  descs.push_back(describe(c));
  std::vector<int> args = {kArgSrc, kArgWeights, kArgDst};
  if (has_bias) {
    descs.push_back(describe(contiguous(nullptr, DType::kFloat32, 1, cols)));
    args.push_back(kArgBias);
  }
  auto desc =
      matmul_desc(descs[0].get(), descs[1].get(), has_bias ? descs[3].get() : nullptr, descs[2].get(), accumulate);
  return std::make_shared<const Operation>(std::move(desc), std::move(args), std::move(descs));
}

}  // namespace

bool onednn_takes(const Matrix& m) {
  // v3.6 reads past a vector with a stride: vectors must be dense.
  if (m.rows == 1) return m.col_stride == 1 || m.cols == 1;
  if (m.cols == 1) return m.row_stride == 1;
  return (m.col_stride == 1 && m.row_stride >= m.cols) || (m.row_stride == 1 && m.col_stride >= m.rows);
}

void onednn_matmul(const Matrix& a, const Matrix& b, const Matrix& c, const float* bias, bool accumulate) {
  const ThreadCount threads;
  const Key key = Key('m', threads).add(a).add(b).add(c).add(bias != nullptr).add(accumulate);
  const auto operation =
      cached(key, [&] { return make_matmul(a, describe(b), c, b.cols, bias != nullptr, accumulate); });
  operation->run({a.data, b.data, c.data, bias});
}

std::vector<uint8_t> onednn_weight_layout(DType dtype, int64_t rows, int64_t cols) {
  // The number of rows of x that the layout is chosen for; it is valid for any.
  constexpr int64_t kTokens = 64;
  const ThreadCount threads;
  const auto a = describe(contiguous(nullptr, dtype, kTokens, rows));
  const auto b = describe_preferred(dtype, rows, cols);
  const auto c = describe(contiguous(nullptr, dtype, kTokens, cols));
  const auto matmul = matmul_desc(a.get(), b.get(), nullptr, c.get(), false);
  const MemoryDesc* chosen = api()->primitive_desc_query_md(matmul.get(), kQueryWeightsDesc, 0);
  size_t size = 0;
  check(api()->memory_desc_get_blob(nullptr, &size, chosen), "memory_desc_get_blob");
  std::vector<uint8_t> layout(size);
  check(api()->memory_desc_get_blob(layout.data(), &size, chosen), "memory_desc_get_blob");
  return layout;
}

size_t onednn_layout_size(const std::vector<uint8_t>& layout) {
  return api()->memory_desc_get_size(describe_layout(layout).get());
}

void onednn_pack(const Matrix& b, const std::vector<uint8_t>& layout, void* packed) {
  const ThreadCount threads;
  const Key key = Key('p', threads).add(b).add(layout);
  const auto operation = cached(key, [&] {
    std::vector<Owned<MemoryDesc>> descs;
    descs.push_back(describe(b));
    descs.push_back(describe_layout(layout));
    auto desc = reorder_desc(descs[0].get(), descs[1].get());
    return std::make_shared<const Operation>(std::move(desc), std::vector<int>{kArgSrc, kArgDst}, std::move(descs));
  });
  operation->run({b.data, packed});
}

void onednn_matmul_packed(const Matrix& a, const std::vector<uint8_t>& layout, const void* packed, const Matrix& c,
                          const float* bias, bool accumulate) {
  const ThreadCount threads;
  const Key key = Key('w', threads).add(a).add(layout).add(c).add(bias != nullptr).add(accumulate);
  const auto operation =
      cached(key, [&] { return make_matmul(a, describe_layout(layout), c, c.cols, bias != nullptr, accumulate); });
  operation->run({a.data, packed, c.data, bias});
}

std::vector<int32_t> onednn_identity() {
  const Version& version = *api()->version();
  return {version.major, version.minor, version.patch, api()->get_effective_cpu_isa()};
}

}  // namespace fusionkit_cpu
