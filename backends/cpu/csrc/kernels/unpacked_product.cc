// A product with few rows of A reads B row by row, as it lies: packing it would cost more than multiplying it.
#include <cstring>

#include "kernels/panels.h"
#include "kernels/products.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

// Steps taken together: the sums are then read and written once for eight.
constexpr int kStepsTogether = 8;

int64_t padded(int64_t cols) { return (cols + kLanes - 1) / kLanes * kLanes; }

// The last k of an odd number, whose pair is zero.
template <class Entries>
struct LastOfPairs {
  using Element = typename Entries::Element;
  static constexpr int kStep = Entries::kStep;
  Entries entries;
  UintVec across(const Element* row, int64_t, int64_t cols) const { return entries.low(row, cols); }
};

// `at` of a chain of steps; `total`, as many behind, of the chains before it.
struct Sums {
  float* at;
  int64_t stride;
  float* total = nullptr;
};

// sums += a[:, 0:Steps] b[0:Steps]; `cols` columns, a whole number of Vectors unless that is 1. is_ahead: asks for the
// next rows of B meanwhile.
template <int Rows, int Vectors, int Steps, class Entries, class A>
void add_columns(const A* a, int64_t a_stride, const Entries& entries, const typename Entries::Element* b,
                 int64_t b_stride, int64_t cols, bool is_ahead, const Sums& sums) {
  using Operand = typename OperandOfStep<Entries::kStep>::Type;
  // A part of a vector is a call with AVX2, which would move the sums to the stack.
  constexpr bool is_whole = Vectors > 1;
  for (int64_t col = 0; col < cols; col += Vectors * kLanes) {
    Vec sum[Rows][Vectors];
#pragma GCC unroll 12
    for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 2
      for (int n = 0; n < Vectors; ++n) sum[row][n] = load(sums.at + row * sums.stride + col + n * kLanes);
    for (int step = 0; step < Steps; ++step) {
      const auto* from = b + step * Entries::kStep * b_stride + col;
      // A stream for each k, whose columns here are short: more than the hardware's prefetchers follow.
      for (int k = 0; is_ahead && k < Entries::kStep; ++k)
        for (int n = 0; n < Vectors; ++n)
          __builtin_prefetch(from + (Steps * Entries::kStep + k) * b_stride + n * kLanes);
      typename Operand::Register b_k[Vectors];
#pragma GCC unroll 2
      for (int n = 0; n < Vectors; ++n)
        b_k[n] =
            (typename Operand::Register)entries.across(from + n * kLanes, b_stride, is_whole ? kLanes : cols - col);
#pragma GCC unroll 12
      for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 2
        for (int n = 0; n < Vectors; ++n)
          sum[row][n] = Operand::multiply_add(Operand::broadcast_group(a + row * a_stride + step), b_k[n], sum[row][n]);
    }
#pragma GCC unroll 12
    for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 2
      for (int n = 0; n < Vectors; ++n) store(sums.at + row * sums.stride + col + n * kLanes, sum[row][n]);
  }
}

// A product whose B is at hand, some steps at a time.
template <class Entries>
struct Product {
  using Operand = typename OperandOfStep<Entries::kStep>::Type;
  using A = typename Operand::Group;
  const A* a;
  int64_t a_stride, rows;
  Sums sums;

  template <int Rows>
  void add_group(int64_t row, int64_t step, const Entries& entries, const Matrix& m) const {
    const auto* b = static_cast<const typename Entries::Element*>(element(m, step * Entries::kStep, 0));
    const A* from = a + row * a_stride + step;
    const Sums to = {sums.at + row * sums.stride, sums.stride};
    const int64_t pairs = m.cols / (2 * kLanes) * (2 * kLanes);
    // The first rows wait for memory; the others find B in the cache.
    add_columns<Rows, 2, kStepsTogether>(from, a_stride, entries, b, m.row_stride, pairs, row == 0, to);
    add_columns<Rows, 1, kStepsTogether>(from, a_stride, entries, b + pairs, m.row_stride, m.cols - pairs, row == 0,
                                         {to.at + pairs, to.stride});
  }

  // The rows in groups whose sums fit the registers.
  void add_together(int64_t step, const Entries& entries, const Matrix& m) const {
    int64_t row = 0;
    for (; row + kPanelRows <= rows; row += kPanelRows) add_group<kPanelRows>(row, step, entries, m);
    for (; row + 4 <= rows; row += 4) add_group<4>(row, step, entries, m);
    for (; row < rows; ++row) add_group<1>(row, step, entries, m);
  }

  template <class E>
  void add_one(int64_t step, const E& entries, const Matrix& m) const {
    const auto* b = static_cast<const typename E::Element*>(element(m, step * Entries::kStep, 0));
    for (int64_t row = 0; row < rows; ++row)
      add_columns<1, 1, 1>(a + row * a_stride + step, a_stride, entries, b, m.row_stride, m.cols, false,
                           {sums.at + row * sums.stride, sums.stride});
  }

  // The chain that ends before `step` joins the others.
  void end_chain(int64_t step) const {
    const bool is_first = step <= Operand::kLongestChain;
    for (int64_t i = 0; i < rows * sums.stride; i += kLanes) {
      const Vec chain = load(sums.at + i);
      store(sums.total + i, is_first ? chain : chain + load(sums.total + i));
      store(sums.at + i, Vec{});
    }
  }

  void run(const Entries& entries, const Matrix& b) const {
    static_assert(Operand::kLongestChain == INT64_MAX || Operand::kLongestChain % kStepsTogether == 0);
    const int64_t steps = b.rows / Entries::kStep;
    int64_t step = 0;
    while (step + kStepsTogether <= steps) {
      add_together(step, entries, b);
      step += kStepsTogether;
      if (step % Operand::kLongestChain == 0 && step < b.rows) end_chain(step);
    }
    for (; step < steps; ++step) add_one(step, entries, b);
    if constexpr (Entries::kStep > 1)
      if (b.rows % Entries::kStep != 0) add_one(step, LastOfPairs<Entries>{entries}, b);
    if (Operand::kLongestChain < b.rows) end_chain(b.rows);
  }
};

}  // namespace

// Of 5120 x 5120: on Zen 5 and, with AVX2, on Zen 3, where 37 rows take 1.6 times as long unpacked.
int64_t most_unpacked_rows() { return kLanes == 16 ? 96 : 24; }

int64_t unpacked_scratch_bytes(int64_t rows, int64_t cols) { return 2 * rows * padded(cols) * int64_t{sizeof(float)}; }

void multiply_unpacked(const Matrix& a, const Matrix& b, DType round_to, const Matrix& c, const float* bias,
                       bool accumulate, void* scratch) {
  float* at = static_cast<float*>(scratch);
  const int64_t count = c.rows * padded(c.cols);
  const Sums sums = {at, padded(c.cols), at + count};
  float* result = at;
  std::memset(at, 0, count * sizeof(float));
  visit_entries(b.dtype, round_to, a.dtype, [&](auto entries) {
    using Entries = decltype(entries);
    using A = typename Product<Entries>::A;
    const Product<Entries> product = {static_cast<const A*>(a.data), a.row_stride / Entries::kStep, c.rows, sums};
    product.run(entries, b);
    if (Product<Entries>::Operand::kLongestChain < b.rows) result = sums.total;
  });
  for (int64_t row = 0; row < c.rows; ++row) {
    const Matrix to = slice_rows(c, row, row + 1);
    // What is accumulated onto enters as a bias would.
    convert_rows(contiguous(result + row * sums.stride, DType::kFloat32, 1, c.cols), DType::kFloat32,
                 accumulate ? static_cast<const float*>(to.data) : bias, to);
  }
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
