"""The gradient of rms_norm.py: programs that stay, each on every n-th row, with the weight's gradient in registers.

    normalised = sum * rstd
    dsum = rstd * (dy * weight - normalised * mean(dy * weight * normalised)) + dresidual
    dweight = sum over rows of dy * normalised

Each program leaves its part of dweight in float32, and column_sum.py adds the parts in order: no atomics, so that a
run repeats bit by bit. The parts of two programs a multiprocessor are 5.4 MB each way at 5120 columns, and stay in the
second-level cache. The floor is dy, sum and dsum (with a residual its gradient too): 503 MB at 16384 x 5120 in
bfloat16. Predicted, not run on hardware: 90% of the copy rate at 16384 rows, 75% at 2048, where the second launch
weighs.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels import column_sum, rms_norm_long
from fusionkit_backends.gpu.kernels.card import card
from fusionkit_backends.gpu.kernels.launch import launch
from fusionkit_backends.gpu.kernels.row_blocks import (
    LONGEST_FOR_GRADIENT,
    factors,
    load_tile,
    load_weight,
    row_blocks,
    store_tile,
)
from fusionkit_backends.gpu.kernels.strided import matrix, vector

PROGRAMS_PER_MULTIPROCESSOR = 2
SHRINK = tl.constexpr(2.0**-14)  # keeps a row's sum in float32 where its mean is; a constant takes no register


@triton.jit
def _finish(scaled, normalised, mean, rstd_ptr, num_rows, dtotal, dx_ptr, dresidual_ptr, columns, row, column, inside):
    """The gradient of one block of columns, into what has asked for it."""
    power, rest = factors(
        tl.load(rstd_ptr + row, mask=row < num_rows, other=1.0)
    )  # again: to hold them, it would spill
    dx = (scaled - normalised * mean[:, None]) * rest[:, None] * power[:, None]
    if dtotal is not None:
        dx += load_tile(dtotal, row, column, inside)
    store_tile(dx_ptr, row, columns, column, dx, inside)
    if dresidual_ptr is not None:
        store_tile(dresidual_ptr, row, columns, column, dx, inside)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_gradient_kernel(
    dy, total, dtotal, weight, rstd_ptr, dx_ptr, dresidual_ptr, parts_ptr, num_rows, columns, BLOCKS: tl.constexpr
):
    ROWS: tl.constexpr = BLOCKS.rows
    HEAD: tl.constexpr = BLOCKS.head
    TAIL: tl.constexpr = BLOCKS.tail
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL if TAIL > 0 else 1)
    weight_head = load_weight(weight, head, columns)[None, :]
    dweight = tl.zeros((ROWS, HEAD), tl.float32)
    if TAIL > 0:
        weight_tail = load_weight(weight, tail, columns)[None, :]
        dweight_tail = tl.zeros((ROWS, TAIL), tl.float32)
    # Two stages: the next row is under way to shared memory (cp.async) while this one is worked on.
    for group in tl.range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0), num_stages=2):
        row = group * ROWS + tl.arange(0, ROWS).to(tl.int64)
        in_rows = (row < num_rows)[:, None]
        inside, in_tail = in_rows & (head < columns)[None, :], in_rows & (tail < columns)[None, :]
        power, rest = factors(tl.load(rstd_ptr + row, mask=row < num_rows, other=1.0))
        dy_tile = load_tile(dy, row, head, inside)
        normalised = load_tile(total, row, head, inside) * power[:, None] * rest[:, None]
        scaled = dy_tile * weight_head
        dot = tl.sum(scaled * (normalised * SHRINK), 1)
        dweight += dy_tile * normalised
        if TAIL > 0:
            dy_tile = load_tile(dy, row, tail, in_tail)
            normalised_tail = load_tile(total, row, tail, in_tail) * power[:, None] * rest[:, None]
            scaled_tail = dy_tile * weight_tail
            dot += tl.sum(scaled_tail * (normalised_tail * SHRINK), 1)
            dweight_tail += dy_tile * normalised_tail
        mean = dot / (columns * SHRINK)
        _finish(scaled, normalised, mean, rstd_ptr, num_rows, dtotal, dx_ptr, dresidual_ptr, columns, row, head, inside)
        if TAIL > 0:
            _finish(
                scaled_tail, normalised_tail, mean, rstd_ptr, num_rows, dtotal, dx_ptr, dresidual_ptr, columns, row,
                tail, in_tail,
            )  # fmt: skip
    if parts_ptr is not None:
        part = parts_ptr + tl.program_id(0).to(tl.int64) * columns
        tl.store(part + head, tl.sum(dweight, 0), mask=head < columns)
        if TAIL > 0:
            tl.store(part + tail, tl.sum(dweight_tail, 0), mask=tail < columns)


def num_parts(rows: int, columns: int) -> int:
    """How many rows `parts` of `backward` must have."""
    groups = triton.cdiv(rows, row_blocks(columns).rows)
    return min(groups, PROGRAMS_PER_MULTIPROCESSOR * card().num_multiprocessors)


def backward(
    dy: Any, total: Any, dtotal: Any | None, weight: Any, rstd: Any, dx: Any, dresidual: Any | None, parts: Any | None,
    dweight: Any | None,
) -> None:  # fmt: skip
    """Write dx, and where they are given dresidual (the same in another dtype) and dweight.

    Args:
        dy, total, dtotal, dx, dresidual: [rows, columns]; the last two contiguous. total is x, or the sum that the
            forward pass stored, and dtotal that sum's own gradient.
        rstd: [rows] float64, from the forward pass.
        parts: [num_parts(rows, columns), columns] float32, a workspace; None if nobody wants dweight.
    """
    rows, columns = dy.shape
    matrices = matrix(dy), matrix(total), matrix(dtotal)
    arguments = (*matrices, vector(weight), rstd, dx, dresidual, parts, rows, columns)
    programs = num_parts(rows, columns)
    if columns > LONGEST_FOR_GRADIENT:
        rms_norm_long.backward(rows, programs, arguments)
    else:
        blocks = row_blocks(columns)
        launch(rms_norm_gradient_kernel, (programs,), *arguments, BLOCKS=blocks, num_warps=blocks.num_warps)
    if parts is not None:
        column_sum.column_sum(parts, dweight)
