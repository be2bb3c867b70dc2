"""Scores of a block of query rows and key columns, and which of these pairs attend. Shared by all attention kernels.

`rows` and `columns` are indices that broadcast to the block: [M, 1] and [1, N], or [1, M] and [N, 1] transposed.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_MASK, BOOL_MASK, FLOAT_MASK = 0, 1, 2

# Arguments whose value compiles no program of its own: a new length must not compile on the hot path.
SIZES = ["q_len", "kv_len", "num_heads", "num_key_value_heads", "bound_heads", "max_blocks", "mask_batch", "mask_head"]


@triton.jit
def load_rows(
    base, first, stride, num_rows, head_dim, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PADDED_D: tl.constexpr
):
    """[BLOCK, BLOCK_D] from row `first` on, zeros beyond num_rows and head_dim.

    The block's address has 64 bits; offsets in it have 32, which halves their registers.
    """
    rows, dims = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    pointers = base + (tl.zeros([], tl.int64) + first) * stride + (rows[:, None] * stride + dims[None, :])
    if PADDED_D:
        return tl.load(pointers, mask=(rows < num_rows - first)[:, None] & (dims < head_dim)[None, :], other=0.0)
    return tl.load(pointers, mask=(rows < num_rows - first)[:, None], other=0.0)


@triton.jit
def store_rows(base, first, stride, num_rows, head_dim, values, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, dims = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    pointers = base + (tl.zeros([], tl.int64) + first) * stride + (rows[:, None] * stride + dims[None, :])
    tl.store(pointers, values, mask=(rows < num_rows - first)[:, None] & (dims < head_dim)[None, :])


@triton.jit
def is_finite(x):
    return tl.abs(x.to(tl.float32)) < float("inf")


@triton.jit
def all_finite(x):
    """Whether every element of a block is. Products multiply a dropped pair by 0, and 0 times NaN is NaN: results that
    are not finite are taken again without the dropped pairs."""
    return tl.min(tl.min(is_finite(x).to(tl.int32), 1), 0) > 0


@triton.jit
def finite_part(x):
    return tl.where(is_finite(x), x, 0.0).to(x.dtype)


@triton.jit
def spoil(acc, attended, rows):
    """acc [M, D], NaN in each row that attends [M, N] to one of `rows` [N, D] that is not finite. Which of its elements
    are not is not asked: products that would tell spill registers."""
    wrong = tl.max((is_finite(rows) == 0).to(tl.int32), 1)
    attends_wrong = tl.max(tl.where(attended, wrong[None, :], 0), 1) > 0
    return tl.where(attends_wrong[:, None], float("nan"), acc)


@triton.jit
def attends(rows, columns, q_len, kv_len, bounds, CAUSAL: tl.constexpr, NUM_BOUNDS: tl.constexpr):
    """Whether row and column exist and neither causal nor the bounds of the key hide it from the query."""
    seen = (rows < q_len) & (columns < kv_len)
    if CAUSAL:
        seen = seen & (columns <= rows + (kv_len - q_len))
    if NUM_BOUNDS > 0:
        at = bounds + columns * NUM_BOUNDS
        exists = columns < kv_len
        hidden = rows >= tl.load(at, mask=exists, other=0)
        if NUM_BOUNDS == 2:
            before = rows < tl.load(at + 1, mask=exists, other=0)
            hidden = (hidden & before) if CAUSAL else (hidden | before)
        if NUM_BOUNDS == 4:
            hidden = hidden & (rows < tl.load(at + 1, mask=exists, other=0))
            second = rows >= tl.load(at + 2, mask=exists, other=0)
            hidden = hidden | (second & (rows < tl.load(at + 3, mask=exists, other=0)))
        seen = seen & (hidden == 0)
    return seen


@triton.jit
def masked_scores(
    products,
    first_row,
    rows,
    first_column,
    columns,
    q_len,
    kv_len,
    mask,
    mask_row,
    mask_column,
    bounds,
    factor,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    NUM_BOUNDS: tl.constexpr,
):
    """factor * q k^T plus a floating mask, -inf where the pair does not attend. Rows and columns count from the block's
    first."""
    seen = attends(first_row + rows, first_column + columns, q_len, kv_len, bounds, CAUSAL, NUM_BOUNDS)
    scores = products * factor
    if MASK != 0:
        zero = tl.zeros([], tl.int64)  # makes the sums 64 bits wide
        corner = mask + (zero + first_row) * mask_row + (zero + first_column) * mask_column
        at = corner + (rows * mask_row + columns * mask_column)
        if MASK == 1:
            seen = seen & (tl.load(at, mask=seen, other=0) != 0)
        else:
            added = tl.load(at, mask=seen, other=0.0).to(tl.float32)
            seen = seen & (added != float("-inf"))
            scores = scores + added
    return tl.where(seen, scores, float("-inf"))
