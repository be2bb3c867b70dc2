#include "onednn_describe.h"

namespace fusionkit_cpu::onednn {
namespace {

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

}  // namespace

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

Owned<MemoryDesc> describe_any(DType dtype, int64_t rows, int64_t cols) {
  const int64_t dims[2] = {rows, cols};
  MemoryDesc* desc = nullptr;
  check(api()->memory_desc_create_with_tag(&desc, 2, dims, dtype == DType::kFloat32 ? kDataFloat32 : kDataBFloat16,
                                           kTagAny),
        "memory_desc_create_with_tag");
  return {desc, api()->memory_desc_destroy};
}

Owned<MemoryDesc> describe_blob(const std::vector<uint8_t>& blob) {
  MemoryDesc* desc = nullptr;
  check(api()->memory_desc_create_with_blob(&desc, blob.data()), "memory_desc_create_with_blob");
  return {desc, api()->memory_desc_destroy};
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

}  // namespace fusionkit_cpu::onednn
