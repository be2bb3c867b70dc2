"""flash_attention backward: delta, then dq by query blocks and dk, dv by key blocks. No atomics, so the bits are fixed.

    p = exp(scores - lse), d scores = p (d out v^T - delta), delta = sum(out d out) - d lse
    dq = scale d scores k, dk = scale d scores^T q, dv = p^T d out

Source: Dao 2023, arXiv:2307.08691, algorithm 2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.attention_arguments import SIZES, Mask, Pairs, Sizes
from fusionkit_backends.gpu.kernels.attention_careful import finite_part, to_mend, without_dropped
from fusionkit_backends.gpu.kernels.attention_programs import key_range, query_program, query_range
from fusionkit_backends.gpu.kernels.attention_scores import (
    LOG2_E,
    dense_rows_of,
    load_rows,
    masked_scores,
    rows_of,
    score_factor,
    store_rows,
)


@triton.jit(do_not_specialize=["q_len", "num_heads"])
def attention_delta_kernel(
    out, dout, lse, dlse, delta, q_len, num_heads, head_dim, HAS_DLSE: tl.constexpr, PATHS: tl.constexpr
):
    """Grid (query blocks * batch_size * num_heads). All but dout are dense. A row without keys has no gradient."""
    num_blocks = tl.cdiv(q_len, PATHS.block_m)
    head_index = (tl.program_id(0) // num_blocks).to(tl.int64)
    batch, head = head_index // num_heads, head_index % num_heads
    first_row = tl.program_id(0) % num_blocks * PATHS.block_m
    rows = first_row + tl.arange(0, PATHS.block_m)
    out, dout = dense_rows_of(out, batch, head, q_len, num_heads, head_dim), rows_of(dout, batch, head)
    ours = load_rows(out, first_row, q_len, head_dim, PATHS.block_m, PATHS).to(tl.float32)
    grads = load_rows(dout, first_row, q_len, head_dim, PATHS.block_m, PATHS).to(tl.float32)
    total = tl.sum(ours * grads, 1)
    at, exists = head_index * q_len + rows, rows < q_len
    if HAS_DLSE:
        total -= tl.load(dlse + at, mask=exists, other=0.0)
    empty = tl.load(lse + at, mask=exists, other=0.0) == float("-inf")
    tl.store(delta + at, tl.where(empty, 0.0, total), mask=exists)


@triton.jit
def probabilities(
    products, top, log_total, first_row, rows, first_column, columns, pairs, factor, CHECKED: tl.constexpr,
    PATHS: tl.constexpr,
):  # fmt: skip
    """(exp(scores - lse), pairs that attend); lse = top + log_total, in the units of the scores (score_factor). A pair
    whose score is -inf by itself weighs nothing and counts as dropped."""
    if CHECKED:
        scores = masked_scores(products, first_row, rows, first_column, columns, pairs, factor, PATHS)
    else:
        scores = products * factor
    attended = scores != float("-inf")
    if PATHS.float_mask:
        return tl.exp2((scores - top - log_total) * LOG2_E), attended
    return tl.exp2(scores - top - log_total if PATHS.in_parts else scores - top), attended


@triton.jit
def load_lse(lse, rows, q_len, PATHS: tl.constexpr):
    """(top, log_total) of the rows; without parts their sum and an unused 0. 0 for rows without keys, whose scores are
    all -inf."""
    exists = rows < q_len
    if PATHS.in_parts:
        top = tl.load(lse + rows * 2, mask=exists, other=0.0)
        log_total = tl.load(lse + rows * 2 + 1, mask=exists, other=0.0)
    else:
        top = tl.load(lse + rows, mask=exists, other=0.0)
        top = tl.where(top == float("-inf"), 0.0, top) * LOG2_E
        log_total = top * 0.0
    return top, log_total


@triton.jit
def add_key_blocks(
    dq, q, dout, top, log_total, delta, k, v, first_row, first, last, pairs, factor, CHECKED: tl.constexpr,
    PATHS: tl.constexpr,
):  # fmt: skip
    sizes = pairs.sizes
    for index in range(first, last):
        block = tl.load(pairs.blocks + index) if PATHS.num_bounds > 0 else index
        first_column = block * PATHS.block_n
        keys = load_rows(k, first_column, sizes.kv_len, sizes.head_dim, PATHS.block_n, PATHS)
        values = load_rows(v, first_column, sizes.kv_len, sizes.head_dim, PATHS.block_n, PATHS)
        products = tl.dot(q, tl.trans(keys), input_precision="ieee")
        p, attended = probabilities(
            products, top[:, None], log_total[:, None], first_row, tl.arange(0, PATHS.block_m)[:, None], first_column,
            tl.arange(0, PATHS.block_n)[None, :], pairs, factor, CHECKED, PATHS,
        )  # fmt: skip
        dp = tl.dot(dout, tl.trans(values), input_precision="ieee")
        dscores = p * (dp - delta[:, None])
        if PATHS.careful:  # an attended key that is not finite makes its scores NaN, and so dscores
            dscores, keys = tl.where(attended, dscores, 0.0), finite_part(keys)
        dq = tl.dot(dscores.to(keys.dtype), keys, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=SIZES)
def attention_dq_kernel(
    q, k, v, dout, dq, lse, delta, mask, lists, mask_batch, mask_head, bound_heads, max_blocks, q_len, kv_len,
    num_heads, num_key_value_heads, head_dim, scale, PATHS: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks * batch_size * num_heads). lse, delta and dq are dense."""
    BLOCK_M: tl.constexpr = PATHS.block_m
    BLOCK_D: tl.constexpr = PATHS.block_d
    query_block, head_index, batch, head, kv_head = query_program(q_len, num_heads, num_key_value_heads, PATHS)
    first_row = query_block * PATHS.block_m
    queries = load_rows(rows_of(q, batch, head), first_row, q_len, head_dim, PATHS.block_m, PATHS)
    grads = load_rows(rows_of(dout, batch, head), first_row, q_len, head_dim, PATHS.block_m, PATHS)
    k, v = rows_of(k, batch, kv_head), rows_of(v, batch, kv_head)
    dq = dense_rows_of(dq, batch, head, q_len, num_heads, head_dim)
    row_offset = head_index.to(tl.int64) * q_len
    rows = first_row + tl.arange(0, PATHS.block_m)
    top, log_total = load_lse(lse + row_offset * (2 if PATHS.in_parts else 1), rows, q_len, PATHS)
    mean = tl.load(delta + row_offset + rows, mask=rows < q_len, other=0.0)
    whole, end, bounds, blocks = key_range(
        query_block, batch, kv_head, lists, bound_heads, max_blocks, q_len, kv_len, PATHS
    )
    mask = Mask(mask.at + (batch * mask_batch + head * mask_head), mask.row, mask.column)
    pairs = Pairs(mask, bounds, blocks, Sizes(q_len, kv_len, head_dim))
    num_stored = q_len
    if PATHS.careful:
        mend = to_mend(load_rows(dq, first_row, q_len, head_dim, PATHS.block_m, PATHS))
        end, num_stored = tl.where(mend, end, 0), tl.where(mend, q_len, 0)
    factor = score_factor(scale, PATHS)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if PATHS.skips:
        acc = add_key_blocks(
            acc, queries, grads, top, log_total, mean, k, v, first_row, 0, whole, pairs, factor, False, PATHS
        )
    acc = add_key_blocks(
        acc, queries, grads, top, log_total, mean, k, v, first_row, whole, end, pairs, factor, True, PATHS
    )
    acc *= scale
    store_rows(dq, first_row, num_stored, head_dim, acc, PATHS.block_m, PATHS)


@triton.jit
def add_query_blocks(
    dk, dv, keys, values, q, dout, lse, delta, first_column, first, last, pairs, factor, CHECKED: tl.constexpr,
    PATHS: tl.constexpr,
):  # fmt: skip
    """Scores are held transposed, [block_n, block_m], so that the sums over queries need no transposition."""
    sizes = pairs.sizes
    for index in range(first, last):
        block = tl.load(pairs.blocks + index) if PATHS.num_bounds > 0 else index
        first_row = block * PATHS.block_m
        rows = first_row + tl.arange(0, PATHS.block_m)
        queries = load_rows(q, first_row, sizes.q_len, sizes.head_dim, PATHS.block_m, PATHS)
        grads = load_rows(dout, first_row, sizes.q_len, sizes.head_dim, PATHS.block_m, PATHS)
        top, log_total = load_lse(lse, rows, sizes.q_len, PATHS)
        mean = tl.load(delta + rows, mask=rows < sizes.q_len, other=0.0)
        products = tl.dot(keys, tl.trans(queries), input_precision="ieee")
        p, attended = probabilities(
            products, top[None, :], log_total[None, :], first_row, tl.arange(0, PATHS.block_m)[None, :], first_column,
            tl.arange(0, PATHS.block_n)[:, None], pairs, factor, CHECKED, PATHS,
        )  # fmt: skip
        if PATHS.careful:  # a query or a gradient that is not finite makes its row's p, delta and dscores NaN
            p = tl.where(attended, p, 0.0)
            dv, grads = without_dropped(dv, attended, grads)
            queries = finite_part(queries)
        dv = tl.dot(p.to(grads.dtype), grads, dv, input_precision="ieee")
        dp = tl.dot(values, tl.trans(grads), input_precision="ieee")
        dscores = p * (dp - mean[None, :])
        if PATHS.careful:
            dscores = tl.where(attended, dscores, 0.0)
        dk = tl.dot(dscores.to(queries.dtype), queries, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=SIZES)
def attention_dk_dv_kernel(
    q, k, v, dout, dk, dv, lse, delta, mask, lists, mask_batch, mask_head, bound_heads, max_blocks, q_len, kv_len,
    num_heads, num_key_value_heads, head_dim, scale, PATHS: tl.constexpr,
):  # fmt: skip
    """Grid (key blocks * batch_size * num_key_value_heads): query heads that share a key head are added in order."""
    BLOCK_N: tl.constexpr = PATHS.block_n
    BLOCK_D: tl.constexpr = PATHS.block_d
    num_blocks = tl.cdiv(kv_len, PATHS.block_n)
    key_block, head_index = tl.program_id(0) % num_blocks, tl.program_id(0) // num_blocks
    batch, kv_head = (head_index // num_key_value_heads).to(tl.int64), head_index % num_key_value_heads
    group = num_heads // num_key_value_heads
    first_column = key_block * PATHS.block_n
    # head * stride can pass 2^31; the head itself stays in 32 bits, as it is held to the end
    wide_head = kv_head.to(tl.int64)
    keys = load_rows(rows_of(k, batch, wide_head), first_column, kv_len, head_dim, PATHS.block_n, PATHS)
    values = load_rows(rows_of(v, batch, wide_head), first_column, kv_len, head_dim, PATHS.block_n, PATHS)
    first, whole, end, bounds, blocks = query_range(
        key_block, batch, kv_head, lists, bound_heads, max_blocks, q_len, kv_len, PATHS
    )
    num_stored = kv_len
    if PATHS.careful:
        dk_made = dense_rows_of(dk, batch, kv_head, kv_len, num_key_value_heads, head_dim)
        dv_made = dense_rows_of(dv, batch, kv_head, kv_len, num_key_value_heads, head_dim)
        mend = to_mend(load_rows(dk_made, first_column, kv_len, head_dim, PATHS.block_n, PATHS))
        mend |= to_mend(load_rows(dv_made, first_column, kv_len, head_dim, PATHS.block_n, PATHS))
        whole, num_stored = tl.where(mend, whole, 0), tl.where(mend, kv_len, 0)
    factor = score_factor(scale, PATHS)
    dk_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for member in range(0, group):
        head = (kv_head * group + member).to(tl.int64)
        head_mask = Mask(mask.at + (batch * mask_batch + head * mask_head), mask.row, mask.column)
        pairs = Pairs(head_mask, bounds, blocks, Sizes(q_len, kv_len, head_dim))
        q_rows, dout_rows = rows_of(q, batch, head), rows_of(dout, batch, head)
        row_offset = (batch * num_heads + head) * q_len
        lse_rows = lse + row_offset * (2 if PATHS.in_parts else 1)
        dk_acc, dv_acc = add_query_blocks(
            dk_acc, dv_acc, keys, values, q_rows, dout_rows, lse_rows, delta + row_offset, first_column, first, whole,
            pairs, factor, True, PATHS,
        )  # fmt: skip
        if PATHS.skips:
            dk_acc, dv_acc = add_query_blocks(
                dk_acc, dv_acc, keys, values, q_rows, dout_rows, lse_rows, delta + row_offset, first_column, whole,
                end, pairs, factor, False, PATHS,
            )  # fmt: skip
    dk_acc *= scale
    dk_rows = dense_rows_of(dk, batch, kv_head, kv_len, num_key_value_heads, head_dim)
    dv_rows = dense_rows_of(dv, batch, kv_head, kv_len, num_key_value_heads, head_dim)
    store_rows(dk_rows, first_column, num_stored, head_dim, dk_acc, PATHS.block_n, PATHS)
    store_rows(dv_rows, first_column, num_stored, head_dim, dv_acc, PATHS.block_n, PATHS)
