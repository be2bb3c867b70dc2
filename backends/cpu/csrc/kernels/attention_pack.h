// Rows of a tensor laid out as operands of the products.
#pragma once

#include "kernels/codes.h"
#include "kernels/matrix_unit.h"
#include "kernels/transpose.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

// The [sequence, head_dim] rows of one head. Paged rows lie in the blocks that a table names.
template <class T>
struct StridedRows {
  using Element = T;
  const T* data;
  int64_t row_stride, column_stride;
  const T* operator[](int64_t row) const { return data + row * row_stride; }
  static int64_t left_in_block(int64_t) { return INT64_MAX; }
};

template <class T>
struct PagedRows {
  using Element = T;
  const T* data;
  const int32_t* block_table;
  int64_t block_stride, block_size, row_stride, column_stride;
  int64_t first = 0;  // the position of row 0
  const T* operator[](int64_t row) const {
    const int64_t at = first + row;
    return data + block_table[at / block_size] * block_stride + at % block_size * row_stride;
  }
  int64_t left_in_block(int64_t row) const { return block_size - (first + row) % block_size; }
};

// Paged rows of codes, and the scale of each.
struct CodedRows : PagedRows<Code> {
  float* scales;
  int64_t scale_block_stride, scale_stride;
  float* scale_of(int64_t row) const {
    const int64_t at = first + row;
    return scales + block_table[at / block_size] * scale_block_stride + at % block_size * scale_stride;
  }
};

// to[i] = the scale of row begin + i.
inline void copy_scales(const CodedRows& rows, int64_t begin, int64_t end, float* to) {
  for (int64_t row = begin; row < end;) {
    const float* from = rows.scale_of(row);
    const int64_t left = rows.left_in_block(row), stop = left < end - row ? row + left : end;
    for (; row < stop; ++row, from += rows.scale_stride) *to++ = *from;
  }
}

// Sizes that follow from head_dim. Staged rows are padded with zeros to whole vectors of groups, and to the unit's
// depth.
template <class Operand>
struct Depth {
  int64_t size, groups, staged_groups, columns;
  explicit Depth(int64_t head_dim)
      : size(head_dim),
        groups(round_up(head_dim, Operand::kGroup * MatrixUnit::kDepth) / Operand::kGroup),
        staged_groups(round_up(groups, kLanes)),
        columns(round_up(head_dim, kLanes)) {}
  int64_t panels() const { return round_up(size, kPanel) / kPanel; }
};

inline void copy_row(const float* from, float* to, int64_t n) { __builtin_memcpy(to, from, n * sizeof(float)); }
inline void copy_row(const BFloat16* from, BFloat16* to, int64_t n) { __builtin_memcpy(to, from, n * sizeof *to); }

template <class T>
void copy_row(const T* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = to_float(from[i]);
}

// Exact: a code has 7 bits beside its sign.
inline void copy_row(const Code* from, BFloat16* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = from_float<BFloat16>(to_float(from[i]));
}

inline void convert_element(float from, float* to) { *to = from; }
inline void convert_element(BFloat16 from, BFloat16* to) { *to = from; }
inline void convert_element(Code from, BFloat16* to) { *to = from_float<BFloat16>(to_float(from)); }
template <class T>
void convert_element(T from, float* to) {
  *to = to_float(from);
}

// Rows are a whole token apart: no processor guesses the next one.
constexpr int64_t kPrefetchRows = 16;

template <class Rows>
[[gnu::always_inline]] inline void prefetch_row(const Rows& rows, int64_t row, int64_t size) {
  const auto* from = rows[row];
  constexpr int64_t kLine = 64 / sizeof *from;
  for (int64_t i = 0; i < size; i += kLine) __builtin_prefetch(from + i * rows.column_stride);
}

// Rows from `begin` on as a left operand, row i at staged + i * staged_groups: padded_rows of them, zero before `first`
// and from `end` on.
template <class Operand, class Rows>
void stage_rows(const Rows& rows, int64_t begin, int64_t end, int64_t padded_rows, const Depth<Operand>& depth,
                typename Operand::Group* staged, int64_t first = 0) {
  using Element = typename Operand::Element;
  const int64_t width = depth.staged_groups * Operand::kGroup;
  for (int64_t row = begin; row < begin + padded_rows; ++row) {
    Element* to = reinterpret_cast<Element*>(staged + (row - begin) * depth.staged_groups);
    int64_t filled = 0;
    if (row + kPrefetchRows < end) prefetch_row(rows, row + kPrefetchRows, depth.size);
    if (row >= first && row < end) {
      const auto* from = rows[row];
      filled = depth.size;
      if (rows.column_stride == 1) {
        copy_row(from, to, filled);
      } else {
        for (int64_t i = 0; i < filled; ++i) convert_element(from[i * rows.column_stride], to + i);
      }
    }
    __builtin_memset(to + filled, 0, (width - filled) * sizeof(Element));
  }
}

// A right operand whose k runs over head_dim: column n is row n. For kLanes staged rows, the first of them `row`.
template <class Operand>
void pack_transposed(const typename Operand::Group* staged, int64_t row, const Depth<Operand>& depth,
                     typename Operand::Group* packed) {
  auto* to = packed + row / kPanel * depth.groups * kPanel + row % kPanel;
  for (int64_t group = 0; group < depth.groups; group += kLanes) {
    transpose_square(staged + group, depth.staged_groups, to + group * kPanel, kPanel, depth.groups - group);
  }
}

// A right operand whose k runs over the rows: column n is element n of every row.
template <class Operand>
void pack_straight(const typename Operand::Group* staged, int64_t row, const Depth<Operand>& depth,
                   typename Operand::Group* packed, int64_t panel_stride) {
  using Element = typename Operand::Element;
  for (int64_t first = 0; first < kLanes; first += Operand::kGroup) {
    const Element* members[Operand::kGroup];
    for (int64_t i = 0; i < Operand::kGroup; ++i) {
      members[i] = reinterpret_cast<const Element*>(staged + (first + i) * depth.staged_groups);
    }
    auto* to = packed + (row + first) / Operand::kGroup * kPanel;
    for (int64_t column = 0; column < depth.columns; column += kPanel, to += panel_stride) {
      Operand::interleave(to, members, depth.columns - column < kPanel ? depth.columns - column : kPanel);
      for (auto& member : members) member += kPanel;
    }
  }
}

// Both layouts of the rows [0, count), each optional (null), those before `first` as zeros. staged holds kLanes rows.
template <class Operand, class Rows>
void pack_rows(const Rows& rows, int64_t count, const Depth<Operand>& depth, typename Operand::Group* staged,
               typename Operand::Group* transposed, typename Operand::Group* straight, int64_t straight_panel_stride,
               int64_t first = 0) {
  for (int64_t row = 0; row < round_up(count, MatrixUnit::kKeysTogether); row += kLanes) {
    stage_rows(rows, row, count, kLanes, depth, staged, first);
    if (transposed != nullptr) pack_transposed(staged, row, depth, transposed);
    if (straight != nullptr) pack_straight(staged, row, depth, straight, straight_panel_stride);
  }
}

}  // namespace
}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
