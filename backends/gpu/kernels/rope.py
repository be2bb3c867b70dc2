"""Rotary position embedding of queries and keys, and its gradient, the rotation by the negative angle.

    (y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin)

One program a token: it holds the token's row of cos and sin and goes through the heads of q, then of k, sixteen at a
time. The floor is memory: q and k are read and written once, 671 MB for 16384 tokens with 40 + 40 heads of 128 in
bfloat16; the tables are 1.2% of that. Predicted, not run on hardware: 93% of the copy rate for both directions.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.card import card
from fusionkit_backends.gpu.kernels.launch import launch

HEADS, NUM_WARPS = 16, 4  # a block of 16 heads of 128 is 16 elements a thread
ENOUGH_PROGRAMS = 8  # a multiprocessor: with fewer tokens the heads are shared out among programs as well


@triton.jit
def _rotate_heads(
    x_ptr, y_ptr, x_head, x_element, y_head, y_element, cos, sin, num_heads,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """All heads of one token that are this program's share."""
    for start in range(tl.program_id(1) * HEADS, num_heads, tl.num_programs(1) * HEADS):
        head = start + tl.arange(0, HEADS)[:, None]
        wide = head.to(tl.int64)  # head * stride can pass 2^31
        x_rows, y_rows = x_ptr + wide * x_head, y_ptr + wide * y_head
        if INTERLEAVED:
            # Read and written whole, so that neighbours share one access; taken apart in registers.
            element = tl.arange(0, 2 * BLOCK_HALF)[None, :]
            inside = (head < num_heads) & (element < 2 * HALF)
            pairs = tl.load(x_rows + element * x_element, mask=inside, other=0.0).to(tl.float32)
            first, second = tl.split(tl.reshape(pairs, (HEADS, BLOCK_HALF, 2)))
            rotated = tl.join(first * cos - second * sin, second * cos + first * sin)
            y = tl.reshape(rotated, (HEADS, 2 * BLOCK_HALF)).to(y_ptr.dtype.element_ty)
            tl.store(y_rows + element * y_element, y, mask=inside)
        else:
            element = tl.arange(0, BLOCK_HALF)[None, :]
            inside = (head < num_heads) & (element < HALF)
            first = tl.load(x_rows + element * x_element, mask=inside, other=0.0).to(tl.float32)
            second = tl.load(x_rows + (element + HALF) * x_element, mask=inside, other=0.0).to(tl.float32)
            left, right = first * cos - second * sin, second * cos + first * sin
            tl.store(y_rows + element * y_element, left.to(y_ptr.dtype.element_ty), mask=inside)
            tl.store(y_rows + (element + HALF) * y_element, right.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["seq_len", "max_position", "position_batch"])
def rope_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, position_ptr, new_q_ptr, new_k_ptr, seq_len, max_position, q_heads, k_heads,
    q_batch, q_token, q_head, q_element, k_batch, k_token, k_head, k_element,
    new_q_batch, new_q_token, new_q_head, new_q_element, new_k_batch, new_k_token, new_k_head, new_k_element,
    cos_row, cos_element, sin_row, sin_element, position_batch, position_token,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(0) // seq_len).to(tl.int64)
    token = (tl.program_id(0) % seq_len).to(tl.int64)
    position = token
    if position_ptr is not None:
        position = tl.load(position_ptr + batch * position_batch + token * position_token).to(tl.int64)
    element = tl.arange(0, BLOCK_HALF)[None, :]
    # A position without a row is never read past the table: its angles, and the results, are NaN.
    inside = (element < HALF) & (position >= 0) & (position < max_position)
    cos = tl.load(cos_ptr + position * cos_row + element * cos_element, mask=inside, other=float("nan"))
    sin = SIGN * tl.load(sin_ptr + position * sin_row + element * sin_element, mask=inside, other=float("nan"))
    _rotate_heads(
        q_ptr + batch * q_batch + token * q_token, new_q_ptr + batch * new_q_batch + token * new_q_token,
        q_head, q_element, new_q_head, new_q_element, cos, sin, q_heads, HALF, BLOCK_HALF, HEADS, INTERLEAVED,
    )  # fmt: skip
    _rotate_heads(
        k_ptr + batch * k_batch + token * k_token, new_k_ptr + batch * new_k_batch + token * new_k_token,
        k_head, k_element, new_k_head, new_k_element, cos, sin, k_heads, HALF, BLOCK_HALF, HEADS, INTERLEAVED,
    )  # fmt: skip


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
    strides = [stride for tensor in (q, k, new_q, new_k, cos, sin) for stride in tensor.stride()]
    strides += (0, 0) if position_ids is None else position_ids.stride()
    launch(
        rope_kernel, (tokens, splits), q, k, cos, sin, position_ids, new_q, new_k, seq_len, cos.shape[0], q_heads,
        k_heads, *strides, HALF=half, BLOCK_HALF=triton.next_power_of_2(half), HEADS=heads, INTERLEAVED=interleaved,
        SIGN=sign, num_warps=NUM_WARPS,
    )  # fmt: skip
