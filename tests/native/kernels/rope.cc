// fusion_rope: both layouts of the pairs, both directions, positions absent, int32 and int64.
#include <cmath>

#include "fusion_rope.h"
#include "judge.h"

namespace kernel_tests {
namespace {

struct Kind {
  const char* positions;
  bool interleaved, inverse;
};

void check(DType dtype, const Shape& shape, const Kind& kind) {
  const int64_t seq_len = shape[1], num_heads = shape[2], half = shape[3] / 2, max_position = 2 * seq_len;
  begin_case(std::string("rope ") + dtype_name(dtype) + " " + text(shape) + " positions " + kind.positions +
             (kind.interleaved ? " interleaved" : "") + (kind.inverse ? " inverse" : ""));
  const Guarded x = random(dtype, shape);
  const auto angle = [&](int64_t i) {
    return static_cast<double>(i / half) * std::pow(100.0, -static_cast<double>(i % half) / static_cast<double>(half));
  };
  const auto single = [](double value) { return static_cast<double>(static_cast<float>(value)); };
  const Shape table{max_position, half};
  const Guarded cos = filled(DType::kFloat32, table, [&](int64_t i) { return single(std::cos(angle(i))); });
  const Guarded sin = filled(DType::kFloat32, table, [&](int64_t i) { return single(std::sin(angle(i))); });
  const DType index = kind.positions == std::string("int32") ? DType::kInt32 : DType::kInt64;
  const Guarded ids = filled(index, {shape[0], seq_len}, [&](int64_t) { return random_below(max_position); });
  const bool given = kind.positions != std::string("absent");
  Guarded y(dtype, shape);
  fusionkit_cpu::rope(x, cos, sin, given ? ids.view() : Tensor{}, kind.interleaved, kind.inverse, y);

  Doubles want(x.size());
  for (int64_t token = 0; token < shape[0] * seq_len; ++token) {
    const int64_t position = given ? static_cast<int64_t>(ids[token]) : token % seq_len;
    for (int64_t head = 0; head < num_heads; ++head)
      for (int64_t i = 0; i < half; ++i) {
        const int64_t start = (token * num_heads + head) * 2 * half;
        const int64_t first = start + (kind.interleaved ? 2 * i : i), second = first + (kind.interleaved ? 1 : half);
        const double c = cos[position * half + i], s = sin[position * half + i] * (kind.inverse ? -1 : 1);
        want[first] = x[first] * c - x[second] * s;
        want[second] = x[second] * c + x[first] * s;
      }
  }
  expect_close("y", y, want, {2, 0.51});
}

}  // namespace

void check_rope(DType dtype) {
  const Shape shapes[] = {{1, 1, 1, 2}, {2, 3, 2, 30}, {1, 5, 3, 32}, {2, 3, 1, 34}, {1, 2, 2, 66}, {1, 31, 5, 256}};
  for (const Shape& shape : shapes)
    for (bool interleaved : {false, true}) {
      check(dtype, shape, {"absent", interleaved, false});
      check(dtype, shape, {"int32", interleaved, true});
      check(dtype, shape, {"int64", interleaved, false});
    }
}

}  // namespace kernel_tests
