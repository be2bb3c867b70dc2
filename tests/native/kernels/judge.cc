#include "judge.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>

namespace kernel_tests {
namespace {

std::atomic<int64_t> num_cases{0}, num_comparisons{0}, num_failures{0};
thread_local std::string name_of_case;

// The distance from 1 to the next value, as numpy.finfo has it.
double epsilon(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-23 : dtype == DType::kBFloat16 ? 0x1p-7 : 0x1p-10;
}

double root_mean_square(const Doubles& want) {
  double total = 0;
  int64_t count = 0;
  for (double value : want) {
    if (!std::isfinite(value)) continue;
    total += value * value;
    ++count;
  }
  return count > 0 ? std::sqrt(total / static_cast<double>(count)) : 0;
}

void report(const char* result, const std::string& what) {
  ++num_failures;
  std::printf("WRONG %s (%s): %s: %s\n", name_of_case.c_str(), fusionkit_cpu::isa(), result, what.c_str());
}

}  // namespace

void begin_case(const std::string& name) {
  ++num_cases;
  name_of_case = name;
  restart_random(std::hash<std::string>{}(name));
}

void expect_close(const char* result, const Guarded& got, const Doubles& want, Epsilons allowed) {
  ++num_comparisons;
  const double count = got.dtype() == DType::kFloat32 ? allowed.float32 : allowed.sixteen_bits;
  const double unit = count * epsilon(got.dtype()), scale = root_mean_square(want);
  double worst = 0;
  int64_t worst_at = 0;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double bound = unit * std::max(std::fabs(want[i]), scale);
    const double share = got[i] == want[i] ? 0 : std::fabs(got[i] - want[i]) / bound;
    if (share <= worst) continue;
    worst = share;  // NaN stays: nothing is below or equal to it
    worst_at = i;
    if (std::isnan(share)) break;
  }
  if (worst <= 1) return;
  report(result, "element " + std::to_string(worst_at) + " is " + std::to_string(got[worst_at]) + ", not " +
                     std::to_string(want[worst_at]) + ": " + std::to_string(worst) + " times the bound");
}

void expect_equal(const char* result, const Guarded& got, const Doubles& want) {
  ++num_comparisons;
  for (int64_t i = 0; i < got.size(); ++i)
    if (got[i] != want[i])
      return report(result, "element " + std::to_string(i) + " is " + std::to_string(got[i]) + ", not " +
                                std::to_string(want[i]));
}

void expect(bool holds, const char* what) {
  ++num_comparisons;
  if (!holds) report("expected", what);
}

Counts counts() { return {num_cases, num_comparisons, num_failures}; }

std::string current_case() { return name_of_case; }

Doubles values(const Guarded& tensor) {
  Doubles all(tensor.size());
  for (int64_t i = 0; i < tensor.size(); ++i) all[i] = tensor[i];
  return all;
}

std::string text(const Shape& sizes) {
  std::string joined;
  for (int64_t size : sizes) joined += (joined.empty() ? "" : "x") + std::to_string(size);
  return joined;
}

}  // namespace kernel_tests
