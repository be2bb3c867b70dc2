// Mistakes made on purpose, to see that they are caught: a tensor that claims memory it lacks, two that overlap, one
// that is not aligned.
#include "fusion_rms_norm.h"
#include "judge.h"
#include "scale.h"
#include "swiglu.h"

namespace kernel_tests {
namespace {

constexpr int64_t kRows = 3;

// One row longer than its memory, from `before` elements before its beginning.
Tensor claimed(const Guarded& tensor, int64_t before) {
  Tensor view = tensor;
  view.data = static_cast<char*>(view.data) - before * static_cast<int64_t>(dtype_size(view.dtype));
  ++view.shape[1];
  ++view.strides[0];
  return view;
}

// The row of 17 + 1 elements ends in the masked part of every instruction set's vectors.
void claim(DType dtype, bool reads, int64_t before) {
  begin_case(std::string("planted ") + dtype_name(dtype));
  constexpr int64_t kSize = 17;
  const Guarded honest = random(dtype, {1, kSize + 1}), short_one = random(dtype, {1, kSize});
  const Guarded result(dtype, {1, kSize + 1}), short_result(dtype, {1, kSize});
  if (reads)
    fusionkit_cpu::swiglu(honest, claimed(short_one, before), result);
  else
    fusionkit_cpu::swiglu(honest, honest, claimed(short_result, before));
}

// y is x moved by one row: the last row that a share writes is the first one that the next share reads.
void overlap() {
  begin_case("planted overlap");
  constexpr int64_t kSize = 40000;  // more than one share's worth
  fusionkit_cpu::set_num_threads(kRows);
  const Guarded memory = random(DType::kFloat32, {kRows + 1, kSize}), weight = random(DType::kFloat32, {kSize});
  Tensor x = memory, y = memory;
  x.shape[0] = y.shape[0] = kRows;
  y.data = static_cast<float*>(y.data) + kSize;
  fusionkit_cpu::rms_norm(x, weight, 1e-5f, y, {});
}

// A float at an odd address.
void misalign() {
  begin_case("planted undefined behaviour");
  const Guarded x = random(DType::kFloat32, {2}), memory = random(DType::kFloat32, {2});
  Tensor factor = memory;
  factor.shape[0] = 1;
  factor.data = static_cast<char*>(factor.data) + 1;
  fusionkit_cpu::scale(x, factor);
}

void wrong_result() {
  begin_case("planted result");
  const Guarded x = random(DType::kFloat32, {1});
  expect_equal("x", x, {x[0] + 1});
}

}  // namespace

// "read end float16", "write begin float32", "overlap", "undefined" or "result"
int plant(const std::string& name) {
  const auto has = [&](const char* word) { return name.find(word) != std::string::npos; };
  if (has("overlap")) overlap();
  if (has("undefined")) misalign();
  if (has("result")) wrong_result();
  edge = has("begin") ? Edge::kBegin : Edge::kEnd;
  for (DType dtype : kFloating)
    if (has((std::string(" ") + dtype_name(dtype)).c_str())) claim(dtype, has("read"), has("begin") ? 1 : 0);
  return counts().failures > 0;
}

}  // namespace kernel_tests
