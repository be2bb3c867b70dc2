"""Adds the rows of a float32 workspace in their order: the second half of a reduction over programs."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.launch import launch

ROWS, COLUMNS = 32, 64  # 5120 columns are 80 programs, each with 8 KB under way


@triton.jit(do_not_specialize=["num_rows"])
def column_sum_kernel(
    parts_ptr, sum_ptr, num_rows, columns, sum_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, num_rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < num_rows)[:, None] & (column < columns)[None, :]
        total += tl.load(parts_ptr + row[:, None] * columns + column[None, :], mask=inside, other=0.0)
    value = tl.sum(total, 0).to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + column * sum_stride, value, mask=column < columns)


def column_sum(parts: Any, total: Any) -> None:
    """Write total [columns] from parts [rows, columns], contiguous float32."""
    rows, columns = parts.shape
    launch(
        column_sum_kernel, (triton.cdiv(columns, COLUMNS),), parts, total, rows, columns, *total.stride(),
        ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
    )  # fmt: skip
