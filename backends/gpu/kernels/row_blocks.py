"""How a row lies in a program: whole, in two blocks whose lengths are powers of two, as Triton's must be.

One block would round 5120 up to 8192 and leave three eighths of the lanes idle; 4096 + 1024 leaves none.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

# Columns that a program holds: 512 threads have 32 of each of the forward pass's tensors, and 16 in the gradient, which
# keeps more. Longer rows are read twice.
LONGEST, LONGEST_FOR_GRADIENT = 16384, 8192
TILE = 2048  # elements of a program when rows are short
ELEMENTS_A_WARP = 640  # 20 a thread; up to 16 warps: 5120 columns, Llama 2 13B's, are 8 warps
FEWEST_WARPS, MOST_WARPS = 4, 16

# 1 / rms between these goes into one float32 whole; from beyond, one of them is taken out first.
SMALL, LARGE = tl.constexpr(2.0**-64), tl.constexpr(2.0**64)

# A float32 sum of squares is trusted between these: float32 ends at 3.4e38, and in a smaller sum the squares of single
# elements come near its least, 1e-38. An epsilon of 1e-20 outweighs such a sum.
GREATEST_SQUARES, LEAST_SQUARES, OUTWEIGHING_EPSILON = tl.constexpr(1e37), tl.constexpr(1e-30), tl.constexpr(1e-20)


class RowBlocks(NamedTuple):
    """rows of one program, its two blocks of columns (the second may be 0), and the warps for them."""

    rows: int
    head: int
    tail: int
    num_warps: int


def row_blocks(columns: int) -> RowBlocks:
    """By the number of columns alone, so that another number of rows compiles nothing."""
    whole = triton.next_power_of_2(columns)
    head, tail = whole, 0
    if columns >= TILE and columns < whole:
        rest = columns - whole // 2
        if triton.next_power_of_2(rest) < whole // 2:
            head, tail = whole // 2, triton.next_power_of_2(rest)
    rows = max(1, TILE // head)
    warps = triton.next_power_of_2((head + tail) * rows // ELEMENTS_A_WARP)
    return RowBlocks(rows, head, tail, max(FEWEST_WARPS, min(MOST_WARPS, warps)))


@triton.jit
def inverse_root(squares, columns, epsilon):
    """1 / sqrt(mean + epsilon) of a float64 sum of squares, once a row."""
    return 1.0 / tl.sqrt(squares / columns + epsilon)


@triton.jit
def factors(inverse):
    """A float64 1 / rms as the product of a power of two and a float32 that has all its bits, for rows of any size:
    float32 ends at rows of 1e-38, and is coarse from 8e37 on."""
    small, large = inverse < SMALL, inverse > LARGE
    power = tl.where(small, SMALL, tl.where(large, LARGE, 1.0))
    rest = inverse.to(tl.float64) * tl.where(small, LARGE, tl.where(large, SMALL, 1.0))  # a division would spill
    return power.to(tl.float32), rest.to(tl.float32)


@triton.jit
def squares_leave_float32(squares, epsilon):
    """Whether a row's sum of squares is too large or too small for float32; then it is taken again in float64."""
    return (squares > GREATEST_SQUARES) | ((squares < LEAST_SQUARES) & (epsilon < OUTWEIGHING_EPSILON))


@triton.jit
def wide_squares(tile):
    wide = tile.to(tl.float64)
    return tl.sum(wide * wide, 1)


@triton.jit
def load_tile(matrix, row, column, inside):
    """[rows, columns] in float32; zeros outside."""
    places = matrix.at + row[:, None] * matrix.row + column[None, :] * matrix.column
    return tl.load(places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_tile(pointer, row, columns, column, value, inside):
    """Into a dense tensor [.., columns]."""
    tl.store(pointer + row[:, None] * columns + column[None, :], value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def load_weight(weight, column, columns):
    """A block of the vector in float32; zeros outside."""
    return tl.load(weight.at + column * weight.stride, mask=column < columns, other=0.0).to(tl.float32)
