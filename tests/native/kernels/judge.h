// The checks: each runs public functions on one case and holds every result against plain double loops.
#pragma once

#include <string>
#include <vector>

#include "guarded.h"

namespace kernel_tests {

using Doubles = std::vector<double>;

constexpr DType kFloating[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// Names the case for messages, also for that of a fault, and starts its random numbers.
void begin_case(const std::string& name);

// Allowed errors in epsilons of the result's dtype, times the larger of |want| and the root mean square of all.
struct Epsilons {
  double float32, sixteen_bits;
};

// NaN is never right; infinities must agree.
void expect_close(const char* result, const Guarded& got, const Doubles& want, Epsilons allowed);
void expect_equal(const char* result, const Guarded& got, const Doubles& want);
void expect(bool holds, const char* what);

// One file each.
void check_norms(DType dtype);
void check_rope(DType dtype);
void check_swiglu(DType dtype);
void check_attention(DType dtype);
void check_paged_attention(DType dtype);
void check_linear(DType dtype);
void check_quantized(DType dtype);
void check_cross_entropy(DType dtype);
void check_refusals();

// Does one thing that must be caught: see planted.cc.
int plant(const std::string& name);

struct Counts {
  int64_t cases, comparisons, failures;
};
Counts counts();
std::string current_case();

Doubles values(const Guarded& tensor);
std::string text(const Shape& sizes);  // "2x17"

}  // namespace kernel_tests
