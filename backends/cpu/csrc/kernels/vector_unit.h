// The matrix unit of targets that multiply in vector registers; see matrix_unit.h.
#pragma once

#include "kernels/register_tile.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

// A tile of C is kRows x kTileVectors registers: 24 of 32 with AVX-512, 12 of 16 otherwise.
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;

struct VectorUnit {
  static constexpr int kRows = 6, kRowsTogether = 1, kPanel = kTileVectors * kLanes;
  static constexpr int kDepth = 1, kKeysTogether = kLanes;
  static constexpr int64_t kQueryBlock = 16 * kRows;
  struct Region {};

  template <class Operand>
  static constexpr bool kMultiplies = true;

  template <class Operand, class WorkOf>
  static void multiply(const Left<Operand>& left, int64_t rows, const Right<Operand>& right, int64_t columns, float* c,
                       int64_t c_stride, bool accumulate, const WorkOf& work_of);

  // Rows of a left operand may lie in any way.
  static constexpr int64_t transposed_size(int64_t, int64_t) { return 0; }
  template <class Operand>
  static Left<Operand> transposed_left(const typename Operand::Group* groups, int64_t stride, int64_t, int64_t,
                                       typename Operand::Group*) {
    return {groups, 1, stride};
  }
};

template <class Operand, int kRows, int kVectors>
void multiply_tile(const Left<Operand>& left, const typename Operand::Group* right, GroupRange groups, float* c,
                   int64_t c_stride, bool accumulate) {
  Vec sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) sums[m][n] = Vec{};
  const auto* from = right + groups.begin * VectorUnit::kPanel;
  add_products<Operand, kRows, kVectors>(
      {left.data + groups.begin * left.group_stride, left.row_stride, left.group_stride}, groups.end - groups.begin,
      [&](int64_t k, int n) { return Operand::load_groups(from + k * VectorUnit::kPanel + n * kLanes); }, sums);
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) {
      float* to = c + m * c_stride + n * kLanes;
      store(to, accumulate ? load(to) + sums[m][n] : sums[m][n]);
    }
}

template <class Operand, int kVectors>
void multiply_rows(int rows, const Left<Operand>& left, const typename Operand::Group* right, GroupRange groups,
                   float* c, int64_t c_stride, bool accumulate) {
  switch (rows) {
    case 1:
      return multiply_tile<Operand, 1, kVectors>(left, right, groups, c, c_stride, accumulate);
    case 2:
      return multiply_tile<Operand, 2, kVectors>(left, right, groups, c, c_stride, accumulate);
    case 3:
      return multiply_tile<Operand, 3, kVectors>(left, right, groups, c, c_stride, accumulate);
    case 4:
      return multiply_tile<Operand, 4, kVectors>(left, right, groups, c, c_stride, accumulate);
    case 5:
      return multiply_tile<Operand, 5, kVectors>(left, right, groups, c, c_stride, accumulate);
    default:
      return multiply_tile<Operand, 6, kVectors>(left, right, groups, c, c_stride, accumulate);
  }
}

template <class Operand>
void multiply_columns(int64_t columns, int rows, const Left<Operand>& left, const typename Operand::Group* right,
                      GroupRange groups, float* c, int64_t c_stride, bool accumulate) {
  if (columns <= kLanes) {
    multiply_rows<Operand, 1>(rows, left, right, groups, c, c_stride, accumulate);
  } else if (columns <= 2 * kLanes || kTileVectors == 2) {
    multiply_rows<Operand, 2>(rows, left, right, groups, c, c_stride, accumulate);
  } else if (columns <= 3 * kLanes) {
    multiply_rows<Operand, kTileVectors - 1>(rows, left, right, groups, c, c_stride, accumulate);
  } else {
    multiply_rows<Operand, kTileVectors>(rows, left, right, groups, c, c_stride, accumulate);
  }
}

template <class Operand, class WorkOf>
void VectorUnit::multiply(const Left<Operand>& left, int64_t rows, const Right<Operand>& right, int64_t columns,
                          float* c, int64_t c_stride, bool accumulate, const WorkOf& work_of) {
  for (int64_t column = 0; column < columns; column += kPanel) {
    const int64_t panel_end = column + kPanel < columns ? column + kPanel : columns;
    const auto* panel = right.data + column / kPanel * right.panel_stride;
    for (int64_t row = 0; row < rows; row += kRows) {
      const int tile_rows = static_cast<int>(rows - row < kRows ? rows - row : kRows);
      const Left<Operand> tile_left = {left.data + row * left.row_stride, left.row_stride, left.group_stride};
      const TileWork work = work_of(row);
      const int64_t first = work.first_column > column ? work.first_column : column;
      const int64_t width = (work.end_column < panel_end ? work.end_column : panel_end) - first;
      if (width <= 0) continue;
      bool add = accumulate;
      for (int64_t begin = work.groups.begin; begin < work.groups.end; add = true) {
        // Chains begin at multiples of their length, wherever the work begins.
        const int64_t chain_end = begin - begin % Operand::kLongestChain + Operand::kLongestChain;
        const int64_t end = work.groups.end < chain_end ? work.groups.end : chain_end;
        multiply_columns<Operand>(width, tile_rows, tile_left, panel + (first - column), {begin, end},
                                  c + row * c_stride + first, c_stride, add);
        begin = end;
      }
    }
  }
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
