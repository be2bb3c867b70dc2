"""Scores of a block of query rows and key columns, and which of these pairs attend. Shared by all attention kernels.

`rows` and `columns` are indices that broadcast to the block: [M, 1] and [1, N], or [1, M] and [N, 1] transposed.
"""

from __future__ import annotations

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.attention_arguments import Rows

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def rows_of(x, batch, head):
    return Rows(x.at + (batch * x.batch + head * x.head), x.row)


@triton.jit
def dense_rows_of(x, batch, head, num_rows, num_heads, head_dim):
    """As rows_of, of a dense tensor's address [batch_size, num_rows, num_heads, head_dim]."""
    stride = num_heads * head_dim
    return Rows(x + (batch * num_rows * stride + head * head_dim), stride)


@triton.jit
def load_rows(x, first, num_rows, head_dim, BLOCK: tl.constexpr, PATHS: tl.constexpr):
    """[BLOCK, block_d] from row `first` on, zeros beyond num_rows and head_dim.

    The block's address has 64 bits; offsets in it have 32, which halves their registers.
    """
    rows, dims = tl.arange(0, BLOCK), tl.arange(0, PATHS.block_d)
    pointers = x.at + (tl.zeros([], tl.int64) + first) * x.stride + (rows[:, None] * x.stride + dims[None, :])
    if PATHS.padded:
        return tl.load(pointers, mask=(rows < num_rows - first)[:, None] & (dims < head_dim)[None, :], other=0.0)
    return tl.load(pointers, mask=(rows < num_rows - first)[:, None], other=0.0)


@triton.jit
def store_rows(x, first, num_rows, head_dim, values, BLOCK: tl.constexpr, PATHS: tl.constexpr):
    rows, dims = tl.arange(0, BLOCK), tl.arange(0, PATHS.block_d)
    pointers = x.at + (tl.zeros([], tl.int64) + first) * x.stride + (rows[:, None] * x.stride + dims[None, :])
    tl.store(
        pointers, values.to(x.at.dtype.element_ty), mask=(rows < num_rows - first)[:, None] & (dims < head_dim)[None, :]
    )


@triton.jit
def score_factor(scale, PATHS: tl.constexpr):
    """Scores are in powers of 2, beside a floating mask in powers of e: the lowest finite float32 times log2(e) would
    be -inf."""
    return scale if PATHS.float_mask else scale * LOG2_E


@triton.jit
def attends(rows, columns, sizes, bounds, PATHS: tl.constexpr):
    """Whether row and column exist and neither causal nor the bounds of the key hide it from the query."""
    seen = (rows < sizes.q_len) & (columns < sizes.kv_len)
    if PATHS.causal:
        seen = seen & (columns <= rows + (sizes.kv_len - sizes.q_len))
    if PATHS.num_bounds > 0:
        at = bounds + columns * PATHS.num_bounds
        exists = columns < sizes.kv_len
        hidden = rows >= tl.load(at, mask=exists, other=0)
        if PATHS.num_bounds == 2:
            before = rows < tl.load(at + 1, mask=exists, other=0)
            hidden = (hidden & before) if PATHS.causal else (hidden | before)
        if PATHS.num_bounds == 4:
            hidden = hidden & (rows < tl.load(at + 1, mask=exists, other=0))
            second = rows >= tl.load(at + 2, mask=exists, other=0)
            hidden = hidden | (second & (rows < tl.load(at + 3, mask=exists, other=0)))
        seen = seen & (hidden == 0)
    return seen


@triton.jit
def masked_scores(products, first_row, rows, first_column, columns, pairs, factor, PATHS: tl.constexpr):
    """factor * q k^T plus a floating mask, -inf where the pair does not attend. Rows and columns count from the block's
    first."""
    seen = attends(first_row + rows, first_column + columns, pairs.sizes, pairs.bounds, PATHS)
    scores = products * factor
    if PATHS.bool_mask or PATHS.float_mask:
        mask = pairs.mask
        zero = tl.zeros([], tl.int64)  # makes the sums 64 bits wide
        corner = mask.at + (zero + first_row) * mask.row + (zero + first_column) * mask.column
        at = corner + (rows * mask.row + columns * mask.column)
        if PATHS.bool_mask:
            seen = seen & (tl.load(at, mask=seen, other=0) != 0)
        else:
            added = tl.load(at, mask=seen, other=0.0).to(tl.float32)
            seen = seen & (added != float("-inf"))
            scores = scores + added
    return tl.where(seen, scores, float("-inf"))
