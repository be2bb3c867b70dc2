// The matrix unit of targets with AMX: bfloat16 in tiles of 16 x 16 sums, 2 x 2 of them at a time; see matrix_unit.h.
// Where the processor has no tiles, a test may choose the model, and everything around the instructions is the same.
#pragma once

#include <type_traits>

#include "kernels/operands.h"
#include "kernels/tile_instructions.h"
#include "kernels/tile_model.h"
#include "kernels/transpose.h"
#include "tiles.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

struct TileUnit {
  static constexpr int kTile = 16;
  static constexpr int kRows = 2 * kTile, kRowsTogether = kTile, kPanel = 4 * kTile;
  static constexpr int kDepth = kTile, kKeysTogether = 2 * kDepth;
  static constexpr int64_t kQueryBlock = 4 * kRows;

  struct Region : TileRegion {
    Region() : TileRegion(!tiles_are_modelled()) {}
  };

  template <class Operand>
  static constexpr bool kMultiplies = std::is_same_v<Operand, BFloat16Operand>;

  template <class Operand, class WorkOf>
  static void multiply(const Left<Operand>& left, int64_t rows, const Right<Operand>& right, int64_t columns, float* c,
                       int64_t c_stride, bool accumulate, const WorkOf& work_of) {
    static_assert(kMultiplies<Operand>);
    if (tiles_are_modelled()) {
      multiply_panels<ModelTiles>(left, rows, right, columns, c, c_stride, accumulate, work_of);
    } else {
      multiply_panels<HardwareTiles>(left, rows, right, columns, c, c_stride, accumulate, work_of);
    }
  }

  static constexpr int64_t transposed_size(int64_t rows, int64_t count) {
    return round_up(rows, kTile) * transposed_stride(count);
  }
  template <class Operand>
  static Left<Operand> transposed_left(const typename Operand::Group* groups, int64_t stride, int64_t rows,
                                       int64_t count, typename Operand::Group* memory) {
    const int64_t to_stride = transposed_stride(count);
    for (int64_t row = 0; row < rows; row += kTile) {
      for (int64_t group = 0; group < count; group += kTile) {
        transpose_square(groups + group * stride + row, stride, memory + row * to_stride + group, to_stride, kTile);
      }
    }
    return {memory, to_stride, 1};
  }

 private:
  // Rows on a power of two would share cache sets.
  static constexpr int64_t transposed_stride(int64_t count) { return round_up(count, kTile) + kTile; }

  template <class Tiles, class Operand, class WorkOf>
  static void multiply_panels(const Left<Operand>& left, int64_t rows, const Right<Operand>& right, int64_t columns,
                              float* c, int64_t c_stride, bool accumulate, const WorkOf& work_of) {
    for (int64_t column = 0; column < columns; column += kPanel) {
      const int64_t panel_end = column + kPanel < columns ? column + kPanel : columns;
      const auto* panel = right.data + column / kPanel * right.panel_stride;
      for (int64_t row = 0; row < rows; row += kRows) {
        const TileWork work = work_of(row);
        const int64_t end = work.end_column < panel_end ? work.end_column : panel_end;
        const int64_t steps = round_up(work.groups.end - work.groups.begin, kDepth) / kDepth;
        if (work.groups.end <= work.groups.begin) continue;
        const auto* a = left.data + row * left.row_stride + work.groups.begin;
        const auto* b = panel + work.groups.begin * kPanel;
        for (int64_t at = work.first_column > column ? work.first_column : column; at < end; at += 2 * kTile) {
          multiply_tiles<Tiles>(rows - row > kTile, end - at > kTile, a, left.row_stride, b + (at - column), steps,
                                c + row * c_stride + at, c_stride, accumulate);
        }
      }
    }
  }

  template <class Tiles>
  static void multiply_tiles(bool two_rows, bool two_columns, const uint32_t* a, int64_t a_stride, const uint32_t* b,
                             int64_t steps, float* c, int64_t c_stride, bool accumulate) {
    const auto multiply = two_rows ? (two_columns ? Tiles::template multiply<2, 2> : Tiles::template multiply<2, 1>)
                                   : (two_columns ? Tiles::template multiply<1, 2> : Tiles::template multiply<1, 1>);
    multiply(a, a_stride, b, kPanel, steps, c, c_stride, accumulate);
  }
};

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
