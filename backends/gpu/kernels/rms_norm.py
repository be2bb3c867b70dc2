"""Root-mean-square normalisation of rows, of x or of x + residual; one program holds a row.

    sum = x + residual, rounded to the residual's dtype
    y = sum / sqrt(mean(sum^2) + epsilon) * weight

The floor is memory: x is read and y written once; with a residual two are read and two written. For 16384 x 5120 in
bfloat16 that is 336 MB and 671 MB. Predicted, not run on hardware: 95% of the copy rate at 16384 rows, 85% at 2048,
where the first and the last wave of programs weigh.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels import rms_norm_long
from fusionkit_backends.gpu.kernels.launch import launch
from fusionkit_backends.gpu.kernels.row_blocks import (
    LONGEST,
    factors,
    inverse_root,
    load_tile,
    load_weight,
    row_blocks,
    squares_leave_float32,
    store_tile,
    wide_squares,
)
from fusionkit_backends.gpu.kernels.strided import matrix, vector


@triton.jit
def _sum(x, residual, sum_ptr, columns, row, column, inside):
    """The tile to normalise, stored as well where it is a sum."""
    tile = load_tile(x, row, column, inside)
    if residual is not None:
        tile += load_tile(residual, row, column, inside)
        tile = tile.to(sum_ptr.dtype.element_ty).to(tl.float32)
        store_tile(sum_ptr, row, columns, column, tile, inside)
    return tile


@triton.jit
def _weighted(tile, rstd, weight, column, columns):
    power, rest = factors(rstd)
    return tile * power[:, None] * rest[:, None] * load_weight(weight, column, columns)[None, :]


@triton.jit(do_not_specialize=["num_rows", "epsilon"])
def rms_norm_kernel(x, residual, weight, y_ptr, sum_ptr, rstd_ptr, num_rows, columns, epsilon, BLOCKS: tl.constexpr):
    ROWS: tl.constexpr = BLOCKS.rows
    HEAD: tl.constexpr = BLOCKS.head
    TAIL: tl.constexpr = BLOCKS.tail
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL if TAIL > 0 else 1)
    in_rows = (row < num_rows)[:, None]
    in_head, in_tail = in_rows & (head < columns)[None, :], in_rows & (tail < columns)[None, :]
    first = _sum(x, residual, sum_ptr, columns, row, head, in_head)
    squares = tl.sum(first * first, 1)
    if TAIL > 0:
        second = _sum(x, residual, sum_ptr, columns, row, tail, in_tail)
        squares += tl.sum(second * second, 1)
    total = squares.to(tl.float64)
    if tl.max(squares_leave_float32(squares, epsilon).to(tl.int32), 0) != 0:
        total = wide_squares(first)
        if TAIL > 0:
            total += wide_squares(second)
    rstd = inverse_root(total, columns, epsilon)
    tl.store(rstd_ptr + row, rstd, mask=row < num_rows)
    store_tile(y_ptr, row, columns, head, _weighted(first, rstd, weight, head, columns), in_head)
    if TAIL > 0:
        store_tile(y_ptr, row, columns, tail, _weighted(second, rstd, weight, tail, columns), in_tail)


def forward(x: Any, residual: Any | None, weight: Any, epsilon: float, y: Any, total: Any | None, rstd: Any) -> None:
    """Write y, and with a residual the sum into `total`; both contiguous.

    Args:
        x, residual, y, total: [rows, columns].
        weight: [columns].
        rstd: [rows] float64, 1 / sqrt(mean + epsilon): what the gradient needs besides the sum.
    """
    rows, columns = x.shape
    arguments = (matrix(x), matrix(residual), vector(weight), y, total, rstd, rows, columns, epsilon)
    if columns > LONGEST:
        rms_norm_long.forward(rows, arguments)
        return
    blocks = row_blocks(columns)
    launch(
        rms_norm_kernel, (triton.cdiv(rows, blocks.rows),), *arguments, BLOCKS=blocks, num_warps=blocks.num_warps
    )  # fmt: skip
