"""rms_norm and its gradient for rows that no program can hold: read twice, block by block."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.launch import launch
from fusionkit_backends.gpu.kernels.row_blocks import factors, inverse_root, load_weight

BLOCK, NUM_WARPS = 4096, 8


@triton.jit
def _load(matrix, row, column, columns):
    place = matrix.at + row * matrix.row + column * matrix.column
    return tl.load(place, mask=column < columns, other=0.0).to(tl.float32)


@triton.jit
def _sum(x, residual, sum_ptr, row, column, columns):
    tile = _load(x, row, column, columns)
    if residual is not None:
        tile += _load(residual, row, column, columns)
        tile = tile.to(sum_ptr.dtype.element_ty).to(tl.float32)
    return tile


@triton.jit(do_not_specialize=["num_rows", "epsilon"])
def rms_norm_long_kernel(
    x, residual, weight, y_ptr, sum_ptr, rstd_ptr, num_rows, columns, epsilon, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        tile = _sum(x, residual, sum_ptr, row, column, columns)
        squares += tile.to(tl.float64) * tile.to(tl.float64)
    rstd = inverse_root(tl.sum(squares, 0), columns, epsilon)
    tl.store(rstd_ptr + row, rstd)
    power, rest = factors(rstd)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        tile = _sum(x, residual, sum_ptr, row, column, columns)
        y = tile * power * rest * load_weight(weight, column, columns)
        tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=column < columns)
        if residual is not None:
            stored = tile.to(sum_ptr.dtype.element_ty)
            tl.store(sum_ptr + row * columns + column, stored, mask=column < columns)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_long_gradient_kernel(
    dy, total, dtotal, weight, rstd_ptr, dx_ptr, dresidual_ptr, parts_ptr, num_rows, columns, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    power, rest = factors(tl.load(rstd_ptr + row))
    dots = tl.zeros((BLOCK,), tl.float32)
    share = 1.0 / columns
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        scaled = _load(dy, row, column, columns) * load_weight(weight, column, columns)
        dots += scaled * (_load(total, row, column, columns) * power * rest * share)
    mean = tl.sum(dots, 0)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        scaled = _load(dy, row, column, columns) * load_weight(weight, column, columns)
        normalised = _load(total, row, column, columns) * power * rest
        dx = (scaled - normalised * mean) * rest * power
        if dtotal is not None:
            dx += _load(dtotal, row, column, columns)
        place = row * columns + column
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=column < columns)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + place, dx.to(dresidual_ptr.dtype.element_ty), mask=column < columns)


@triton.jit(do_not_specialize=["num_rows", "num_parts"])
def rms_norm_long_weight_kernel(
    dy, total, rstd_ptr, parts_ptr, num_rows, num_parts, columns, BLOCK: tl.constexpr
):  # fmt: skip
    """A part of dweight: the program's block of columns over every num_parts-th row."""
    part = tl.program_id(0).to(tl.int64) % num_parts
    column = (tl.program_id(0) // num_parts) * BLOCK + tl.arange(0, BLOCK)
    dweight = tl.zeros((BLOCK,), tl.float32)
    for row in range(part, num_rows, num_parts):
        power, rest = factors(tl.load(rstd_ptr + row))
        dweight += _load(dy, row, column, columns) * (_load(total, row, column, columns) * power * rest)
    tl.store(parts_ptr + part * columns + column, dweight, mask=column < columns)


def forward(rows: int, arguments: tuple[Any, ...]) -> None:
    """As rms_norm.forward, with the kernel's own arguments."""
    launch(rms_norm_long_kernel, (rows,), *arguments, BLOCK=BLOCK, num_warps=NUM_WARPS)


def backward(rows: int, num_parts: int, arguments: tuple[Any, ...]) -> None:
    """As rms_norm_gradient.backward, with the kernel's own arguments."""
    launch(rms_norm_long_gradient_kernel, (rows,), *arguments, BLOCK=BLOCK, num_warps=NUM_WARPS)
    dy, total, _, _, rstd, _, _, parts, _, columns = arguments
    if parts is not None:
        launch(
            rms_norm_long_weight_kernel, (num_parts * triton.cdiv(columns, BLOCK),), dy, total, rstd, parts, rows,
            num_parts, columns, BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
