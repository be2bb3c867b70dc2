"""Rotary position embedding of queries and keys, and its gradient, the rotation by the negative angle.

    (y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin)

One program a token: it holds the token's row of cos and sin and goes through the heads of q, then of k, sixteen at a
time. The floor is memory: q and k are read and written once, 671 MB for 16384 tokens with 40 + 40 heads of 128 in
bfloat16; the tables are 1.2% of that. Predicted, not run on hardware: 93% of the copy rate for both directions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.card import card
from fusionkit_backends.gpu.kernels.launch import launch
from fusionkit_backends.gpu.kernels.strided import heads_of, matrix

HEADS, NUM_WARPS = 16, 4  # a block of 16 heads of 128 is 16 elements a thread
ENOUGH_PROGRAMS = 8  # a multiprocessor: with fewer tokens the heads are shared out among programs as well


class Paths(NamedTuple):
    """What a program is compiled for.

    Args:
        half, block_half: half of head_dim, and the power of two that it is padded to.
        heads: of a block.
        interleaved: as the op's.
        sign: 1 rotates by the angles, -1 back.
    """

    half: int
    block_half: int
    heads: int
    interleaved: bool
    sign: int


@triton.jit
def _rotate_heads(
    x, y, batch, token, num_heads, cos, sin, PATHS: tl.constexpr
):  # fmt: skip
    """y = x rotated: all heads of one token that are this program's share."""
    HEADS: tl.constexpr = PATHS.heads
    BLOCK_HALF: tl.constexpr = PATHS.block_half
    x_token = x.at + batch * x.batch + token * x.token
    y_token = y.at + batch * y.batch + token * y.token
    dtype = y.at.dtype.element_ty
    for start in range(tl.program_id(1) * HEADS, num_heads, tl.num_programs(1) * HEADS):
        head = start + tl.arange(0, HEADS)[:, None]
        wide = head.to(tl.int64)  # head * stride can pass 2^31
        x_rows, y_rows = x_token + wide * x.head, y_token + wide * y.head
        if PATHS.interleaved:
            # Read and written whole, so that neighbours share one access; taken apart in registers.
            element = tl.arange(0, 2 * BLOCK_HALF)[None, :]
            inside = (head < num_heads) & (element < 2 * PATHS.half)
            pairs = tl.load(x_rows + element * x.element, mask=inside, other=0.0).to(tl.float32)
            first, second = tl.split(tl.reshape(pairs, (HEADS, BLOCK_HALF, 2)))
            rotated = tl.join(first * cos - second * sin, second * cos + first * sin)
            rotated = tl.reshape(rotated, (HEADS, 2 * BLOCK_HALF)).to(dtype)
            tl.store(y_rows + element * y.element, rotated, mask=inside)
        else:
            element = tl.arange(0, BLOCK_HALF)[None, :]
            inside = (head < num_heads) & (element < PATHS.half)
            first = tl.load(x_rows + element * x.element, mask=inside, other=0.0).to(tl.float32)
            second = tl.load(x_rows + (element + PATHS.half) * x.element, mask=inside, other=0.0).to(tl.float32)
            left, right = first * cos - second * sin, second * cos + first * sin
            tl.store(y_rows + element * y.element, left.to(dtype), mask=inside)
            tl.store(y_rows + (element + PATHS.half) * y.element, right.to(dtype), mask=inside)


@triton.jit(do_not_specialize=["seq_len", "max_position", "position_batch"])
def rope_kernel(
    q, k, cos, sin, position_ptr, new_q, new_k, seq_len, max_position, q_heads, k_heads, position_batch, position_token,
    PATHS: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(0) // seq_len).to(tl.int64)
    token = (tl.program_id(0) % seq_len).to(tl.int64)
    position = token
    if position_ptr is not None:
        position = tl.load(position_ptr + batch * position_batch + token * position_token).to(tl.int64)
    element = tl.arange(0, PATHS.block_half)[None, :]
    # A position without a row is never read past the table: its angles, and the results, are NaN.
    inside = (element < PATHS.half) & (position >= 0) & (position < max_position)
    cosines = tl.load(cos.at + position * cos.row + element * cos.column, mask=inside, other=float("nan"))
    sines = PATHS.sign * tl.load(sin.at + position * sin.row + element * sin.column, mask=inside, other=float("nan"))
    _rotate_heads(q, new_q, batch, token, q_heads, cosines, sines, PATHS)
    _rotate_heads(k, new_k, batch, token, k_heads, cosines, sines, PATHS)


def rotate(
    q: Any, k: Any, cos: Any, sin: Any, position_ids: Any | None, interleaved: bool, new_q: Any, new_k: Any, sign: int
) -> None:  # fmt: skip
    """Write new_q and new_k. sign: 1 rotates by the angles, -1 back.

    Args:
        q, k, new_q, new_k: [batch_size, seq_len, heads, head_dim].
        cos, sin: [max_position, head_dim / 2] float32.
        position_ids: [batch_size, seq_len] int32 or int64; None: 0..seq_len-1.
    """
    batch_size, seq_len, q_heads, head_dim = q.shape
    k_heads, half = k.shape[2], head_dim // 2
    heads = min(HEADS, triton.next_power_of_2(max(q_heads, k_heads)))
    tokens = batch_size * seq_len
    splits = 1 if tokens >= ENOUGH_PROGRAMS * card().num_multiprocessors else triton.cdiv(max(q_heads, k_heads), heads)
    position_strides = (0, 0) if position_ids is None else position_ids.stride()
    launch(
        rope_kernel, (tokens, splits), heads_of(q), heads_of(k), matrix(cos), matrix(sin), position_ids,
        heads_of(new_q), heads_of(new_k), seq_len, cos.shape[0], q_heads, k_heads, *position_strides,
        PATHS=Paths(half, triton.next_power_of_2(half), heads, interleaved, sign), num_warps=NUM_WARPS,
    )  # fmt: skip
