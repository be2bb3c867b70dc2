#include "onednn_matmul.h"

#include "onednn_describe.h"
#include "onednn_operation.h"

namespace fusionkit_cpu {
namespace {

using namespace onednn;

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

void onednn_matmul_packed(const Matrix& a, const std::vector<uint8_t>& layout, const void* packed, const Matrix& c,
                          const float* bias, bool accumulate) {
  const ThreadCount threads;
  const Key key = Key('w', threads).add(a).add(layout).add(c).add(bias != nullptr).add(accumulate);
  const auto operation =
      cached(key, [&] { return make_matmul(a, describe_blob(layout), c, c.cols, bias != nullptr, accumulate); });
  operation->run({a.data, packed, c.data, bias});
}

std::vector<int32_t> onednn_identity() {
  const Version& version = *api()->version();
  return {version.major, version.minor, version.patch, api()->get_effective_cpu_isa()};
}

}  // namespace fusionkit_cpu
