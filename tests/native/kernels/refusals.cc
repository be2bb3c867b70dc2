// Arguments that are refused, and the settings of the machine.
#include <stdexcept>

#include "fusion_rms_norm.h"
#include "judge.h"

namespace kernel_tests {
namespace {

template <class F>
void expect_refusal(const std::string& start, F call) {
  try {
    call();
    expect(false, "a refusal");
  } catch (const std::invalid_argument& error) {
    expect(std::string(error.what()).rfind(start, 0) == 0, error.what());
  }
}

}  // namespace

void check_refusals() {
  begin_case("refusals");
  const Guarded x = random(DType::kFloat32, {2, 8}), weight = random(DType::kFloat32, {7}), y(DType::kFloat32, {2, 8});
  expect_refusal("fusion_rms_norm: weight must be [8], got float32 [7]",
                 [&] { fusionkit_cpu::rms_norm(x, weight, 1e-5f, y, {}); });
  expect_refusal("set_isa: name must be one of", [] { fusionkit_cpu::set_isa("vector"); });
  expect_refusal("set_num_threads: n must be between 1 and", [] { fusionkit_cpu::set_num_threads(0); });
  expect(fusionkit_cpu::matmul_library() == std::string("blocked"), "products without oneDNN");
  expect(!fusionkit_cpu::load_onednn("no such file"), "a library that is not there is not loaded");
  expect(fusionkit_cpu::num_threads() >= 1, "at least one thread");
}

}  // namespace kernel_tests
