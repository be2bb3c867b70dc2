"""flash_attention backward: delta, then dq by query blocks and dk, dv by key blocks. No atomics, so the bits are fixed.

    p = exp(scores - lse), d scores = p (d out v^T - delta), delta = sum(out d out) - d lse
    dq = scale d scores k, dk = scale d scores^T q, dv = p^T d out

Source: Dao 2023, arXiv:2307.08691, algorithm 2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.attention_forward import LOG2_E, key_range
from fusionkit_backends.gpu.kernels.attention_scores import (
    SIZES,
    all_finite,
    finite_part,
    load_rows,
    masked_scores,
    spoil,
    store_rows,
)


@triton.jit(do_not_specialize=["q_len", "num_heads"])
def attention_delta_kernel(
    out,
    dout,
    lse,
    dlse,
    delta,
    dout_batch,
    dout_row,
    dout_head,
    q_len,
    num_heads,
    head_dim,
    HAS_DLSE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    """Grid (query blocks * batch_size * num_heads). All but dout are dense. A row without keys has no gradient."""
    num_blocks = tl.cdiv(q_len, BLOCK_M)
    head_index = (tl.program_id(0) // num_blocks).to(tl.int64)
    batch, head = head_index // num_heads, head_index % num_heads
    first_row = tl.program_id(0) % num_blocks * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    row_stride = num_heads * head_dim
    out += batch * q_len * row_stride + head * head_dim
    dout += batch * dout_batch + head * dout_head
    ours = load_rows(out, first_row, row_stride, q_len, head_dim, BLOCK_M, BLOCK_D, PADDED_D).to(tl.float32)
    grads = load_rows(dout, first_row, dout_row, q_len, head_dim, BLOCK_M, BLOCK_D, PADDED_D).to(tl.float32)
    total = tl.sum(ours * grads, 1)
    at, exists = head_index * q_len + rows, rows < q_len
    if HAS_DLSE:
        total -= tl.load(dlse + at, mask=exists, other=0.0)
    empty = tl.load(lse + at, mask=exists, other=0.0) == float("-inf")
    tl.store(delta + at, tl.where(empty, 0.0, total), mask=exists)


@triton.jit
def probabilities(
    products,
    top,
    log_total,
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
    CHECKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    NUM_BOUNDS: tl.constexpr,
    IN_PARTS: tl.constexpr,
):
    """(exp(scores - lse), pairs that attend); lse = top + log_total, in the units of the scores
    (attention_forward.accumulate). A pair whose score is -inf by itself weighs nothing and counts as dropped."""
    if CHECKED:
        scores = masked_scores(
            products, first_row, rows, first_column, columns, q_len, kv_len, mask, mask_row, mask_column, bounds,
            factor, CAUSAL, MASK, NUM_BOUNDS,
        )  # fmt: skip
    else:
        scores = products * factor
    attended = scores != float("-inf")
    if MASK == 2:
        return tl.exp2((scores - top - log_total) * LOG2_E), attended
    return tl.exp2(scores - top - log_total if IN_PARTS else scores - top), attended


@triton.jit
def load_lse(lse, rows, q_len, IN_PARTS: tl.constexpr):
    """(top, log_total) of the rows; without parts their sum and an unused 0. 0 for rows without keys, whose scores are
    all -inf."""
    exists = rows < q_len
    if IN_PARTS:
        top = tl.load(lse + rows * 2, mask=exists, other=0.0)
        log_total = tl.load(lse + rows * 2 + 1, mask=exists, other=0.0)
    else:
        top = tl.load(lse + rows, mask=exists, other=0.0)
        top = tl.where(top == float("-inf"), 0.0, top) * LOG2_E
        log_total = top * 0.0
    return top, log_total


@triton.jit
def add_key_blocks(
    dq,
    q,
    dout,
    top,
    log_total,
    delta,
    k,
    v,
    first_row,
    first,
    last,
    blocks,
    k_stride,
    v_stride,
    q_len,
    kv_len,
    head_dim,
    mask,
    mask_row,
    mask_column,
    bounds,
    factor,
    CHECKED: tl.constexpr,
    CAREFUL: tl.constexpr,
    LISTED: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    NUM_BOUNDS: tl.constexpr,
    IN_PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    for index in range(first, last):
        block = tl.load(blocks + index) if LISTED else index
        first_column = block * BLOCK_N
        keys = load_rows(k, first_column, k_stride, kv_len, head_dim, BLOCK_N, BLOCK_D, PADDED_D)
        values = load_rows(v, first_column, v_stride, kv_len, head_dim, BLOCK_N, BLOCK_D, PADDED_D)
        products = tl.dot(q, tl.trans(keys), input_precision="ieee")
        p, attended = probabilities(
            products, top[:, None], log_total[:, None], first_row, tl.arange(0, BLOCK_M)[:, None], first_column,
            tl.arange(0, BLOCK_N)[None, :], q_len, kv_len, mask, mask_row, mask_column, bounds, factor, CHECKED,
            CAUSAL, MASK, NUM_BOUNDS, IN_PARTS,
        )  # fmt: skip
        dp = tl.dot(dout, tl.trans(values), input_precision="ieee")
        dscores = p * (dp - delta[:, None])
        if CAREFUL:  # an attended key that is not finite makes its scores NaN, and so dscores
            dscores, keys = tl.where(attended, dscores, 0.0), finite_part(keys)
        dq = tl.dot(dscores.to(keys.dtype), keys, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=SIZES)
def attention_dq_kernel(
    q,
    k,
    v,
    dout,
    lse,
    delta,
    dq,
    mask,
    bounds,
    blocks,
    counts,
    q_batch,
    q_row,
    q_head,
    k_batch,
    k_row,
    k_head,
    v_batch,
    v_row,
    v_head,
    dout_batch,
    dout_row,
    dout_head,
    mask_batch,
    mask_head,
    mask_row,
    mask_column,
    bound_heads,
    max_blocks,
    q_len,
    kv_len,
    num_heads,
    num_key_value_heads,
    head_dim,
    scale,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    NUM_BOUNDS: tl.constexpr,
    IN_PARTS: tl.constexpr,
    CAREFUL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    """Grid (query blocks * batch_size * num_heads). lse, delta and dq are dense; lists of key blocks and CAREFUL as
    forward."""
    num_blocks = tl.cdiv(q_len, BLOCK_M)
    query_block, head_index = tl.program_id(0) % num_blocks, tl.program_id(0) // num_blocks
    if CAUSAL:
        query_block = num_blocks - 1 - query_block
    batch, head = (head_index // num_heads).to(tl.int64), head_index % num_heads
    kv_head = (head // (num_heads // num_key_value_heads)).to(tl.int64)  # head * stride can pass 2^31
    head = head.to(tl.int64)
    first_row = query_block * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    q += batch * q_batch + head * q_head
    dout += batch * dout_batch + head * dout_head
    queries = load_rows(q, first_row, q_row, q_len, head_dim, BLOCK_M, BLOCK_D, PADDED_D)
    grads = load_rows(dout, first_row, dout_row, q_len, head_dim, BLOCK_M, BLOCK_D, PADDED_D)
    k += batch * k_batch + kv_head * k_head
    v += batch * v_batch + kv_head * v_head
    mask += batch * mask_batch + head * mask_head
    factor = scale if MASK == 2 else scale * LOG2_E
    row_offset = head_index.to(tl.int64) * q_len
    top, log_total = load_lse(lse + row_offset * (2 if IN_PARTS else 1), rows, q_len, IN_PARTS)
    mean = tl.load(delta + row_offset + rows, mask=rows < q_len, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    whole, end = key_range(first_row, q_len, kv_len, CAUSAL, BLOCK_M, BLOCK_N)
    if NUM_BOUNDS > 0:
        bound_head = batch * bound_heads + tl.minimum(kv_head, bound_heads - 1)
        bounds += bound_head * kv_len * NUM_BOUNDS
        listed = bound_head * num_blocks + query_block
        blocks += listed * max_blocks
        end = tl.load(counts + listed)
    row_stride = num_heads * head_dim
    dq += batch * q_len * row_stride + head * head_dim
    num_stored = q_len
    if CAREFUL:
        made = load_rows(dq, first_row, row_stride, q_len, head_dim, BLOCK_M, BLOCK_D, PADDED_D)
        if all_finite(made):
            end, num_stored = 0, 0
    if MASK != 0 or NUM_BOUNDS > 0 or CAREFUL:
        whole = 0
    else:
        acc = add_key_blocks(
            acc, queries, grads, top, log_total, mean, k, v, first_row, 0, whole, blocks, k_row, v_row, q_len, kv_len,
            head_dim, mask, mask_row, mask_column, bounds, factor, False, False, False, CAUSAL, MASK, NUM_BOUNDS,
            IN_PARTS, BLOCK_M, BLOCK_N, BLOCK_D, PADDED_D,
        )  # fmt: skip
    acc = add_key_blocks(
        acc, queries, grads, top, log_total, mean, k, v, first_row, whole, end, blocks, k_row, v_row, q_len, kv_len,
        head_dim, mask, mask_row, mask_column, bounds, factor, True, CAREFUL, NUM_BOUNDS > 0, CAUSAL, MASK, NUM_BOUNDS,
        IN_PARTS, BLOCK_M, BLOCK_N, BLOCK_D, PADDED_D,
    )  # fmt: skip
    acc *= scale
    store_rows(dq, first_row, row_stride, num_stored, head_dim, acc.to(dq.dtype.element_ty), BLOCK_M, BLOCK_D)


@triton.jit
def add_query_blocks(
    dk,
    dv,
    keys,
    values,
    q,
    dout,
    lse,
    delta,
    first_column,
    first,
    last,
    blocks,
    q_stride,
    dout_stride,
    q_len,
    kv_len,
    head_dim,
    mask,
    mask_row,
    mask_column,
    bounds,
    factor,
    CHECKED: tl.constexpr,
    CAREFUL: tl.constexpr,
    LISTED: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    NUM_BOUNDS: tl.constexpr,
    IN_PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    """Scores are held transposed, [BLOCK_N, BLOCK_M], so that the sums over queries need no transposition."""
    for index in range(first, last):
        block = tl.load(blocks + index) if LISTED else index
        first_row = block * BLOCK_M
        rows = first_row + tl.arange(0, BLOCK_M)
        queries = load_rows(q, first_row, q_stride, q_len, head_dim, BLOCK_M, BLOCK_D, PADDED_D)
        grads = load_rows(dout, first_row, dout_stride, q_len, head_dim, BLOCK_M, BLOCK_D, PADDED_D)
        top, log_total = load_lse(lse, rows, q_len, IN_PARTS)
        mean = tl.load(delta + rows, mask=rows < q_len, other=0.0)
        products = tl.dot(keys, tl.trans(queries), input_precision="ieee")
        p, attended = probabilities(
            products, top[None, :], log_total[None, :], first_row, tl.arange(0, BLOCK_M)[None, :], first_column,
            tl.arange(0, BLOCK_N)[:, None], q_len, kv_len, mask, mask_row, mask_column, bounds, factor, CHECKED,
            CAUSAL, MASK, NUM_BOUNDS, IN_PARTS,
        )  # fmt: skip
        if CAREFUL:  # a query or a gradient that is not finite makes its row's p, delta and dscores NaN
            p = tl.where(attended, p, 0.0)
            dv = spoil(dv, attended, grads)
            queries, grads = finite_part(queries), finite_part(grads)
        dv = tl.dot(p.to(grads.dtype), grads, dv, input_precision="ieee")
        dp = tl.dot(values, tl.trans(grads), input_precision="ieee")
        dscores = p * (dp - mean[None, :])
        if CAREFUL:
            dscores = tl.where(attended, dscores, 0.0)
        dk = tl.dot(dscores.to(queries.dtype), queries, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=SIZES)
def attention_dk_dv_kernel(
    q,
    k,
    v,
    dout,
    lse,
    delta,
    dk,
    dv,
    mask,
    bounds,
    blocks,
    counts,
    q_batch,
    q_row,
    q_head,
    k_batch,
    k_row,
    k_head,
    v_batch,
    v_row,
    v_head,
    dout_batch,
    dout_row,
    dout_head,
    mask_batch,
    mask_head,
    mask_row,
    mask_column,
    bound_heads,
    max_blocks,
    q_len,
    kv_len,
    num_heads,
    num_key_value_heads,
    head_dim,
    scale,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    NUM_BOUNDS: tl.constexpr,
    IN_PARTS: tl.constexpr,
    CAREFUL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    """Grid (key blocks * batch_size * num_key_value_heads): query heads that share a key head are added in order."""
    num_blocks = tl.cdiv(kv_len, BLOCK_N)
    key_block, head_index = tl.program_id(0) % num_blocks, tl.program_id(0) // num_blocks
    batch, kv_head = (head_index // num_key_value_heads).to(tl.int64), head_index % num_key_value_heads
    group = num_heads // num_key_value_heads
    first_column = key_block * BLOCK_N
    # head * stride can pass 2^31; the head itself stays in 32 bits, as it is held to the end
    k += batch * k_batch + kv_head.to(tl.int64) * k_head
    v += batch * v_batch + kv_head.to(tl.int64) * v_head
    keys = load_rows(k, first_column, k_row, kv_len, head_dim, BLOCK_N, BLOCK_D, PADDED_D)
    values = load_rows(v, first_column, v_row, kv_len, head_dim, BLOCK_N, BLOCK_D, PADDED_D)
    factor = scale if MASK == 2 else scale * LOG2_E
    first, end = 0, tl.cdiv(q_len, BLOCK_M)
    whole = 0  # from this block on, every row sees the whole key block
    if CAUSAL:
        first_seeing = first_column + q_len - kv_len
        first = tl.maximum(first_seeing, 0) // BLOCK_M
        whole = tl.minimum(tl.cdiv(tl.maximum(first_seeing + BLOCK_N - 1, 0), BLOCK_M), end)
    if NUM_BOUNDS > 0:
        bound_head = batch * bound_heads + (kv_head if bound_heads > 1 else 0)
        bounds += bound_head * kv_len * NUM_BOUNDS
        listed = bound_head * num_blocks + key_block
        blocks += listed * max_blocks
        first, end = 0, tl.load(counts + listed)
    if MASK != 0 or NUM_BOUNDS > 0:
        whole = end
    row_stride = num_key_value_heads * head_dim
    num_stored = kv_len
    if CAREFUL:
        whole = end
        start = batch * kv_len * row_stride + kv_head * head_dim
        dk_made = load_rows(dk + start, first_column, row_stride, kv_len, head_dim, BLOCK_N, BLOCK_D, PADDED_D)
        dv_made = load_rows(dv + start, first_column, row_stride, kv_len, head_dim, BLOCK_N, BLOCK_D, PADDED_D)
        if all_finite(dk_made) & all_finite(dv_made):
            whole, num_stored = 0, 0
    dk_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for member in range(0, group):
        head = (kv_head * group + member).to(tl.int64)
        q_head_base = q + batch * q_batch + head * q_head
        dout_head_base = dout + batch * dout_batch + head * dout_head
        mask_base = mask + batch * mask_batch + head * mask_head
        row_offset = (batch * num_heads + head) * q_len
        lse_base = lse + row_offset * (2 if IN_PARTS else 1)
        dk_acc, dv_acc = add_query_blocks(
            dk_acc, dv_acc, keys, values, q_head_base, dout_head_base, lse_base, delta + row_offset, first_column,
            first, whole, blocks, q_row, dout_row, q_len, kv_len, head_dim, mask_base, mask_row, mask_column, bounds,
            factor, True, CAREFUL, NUM_BOUNDS > 0, CAUSAL, MASK, NUM_BOUNDS, IN_PARTS, BLOCK_M, BLOCK_N, BLOCK_D,
            PADDED_D,
        )  # fmt: skip
        if MASK == 0 and NUM_BOUNDS == 0 and not CAREFUL:
            dk_acc, dv_acc = add_query_blocks(
                dk_acc, dv_acc, keys, values, q_head_base, dout_head_base, lse_base, delta + row_offset, first_column,
                whole, end, blocks, q_row, dout_row, q_len, kv_len, head_dim, mask_base, mask_row, mask_column, bounds,
                factor, False, False, False, CAUSAL, MASK, NUM_BOUNDS, IN_PARTS, BLOCK_M, BLOCK_N, BLOCK_D, PADDED_D,
            )  # fmt: skip
    offset = batch * kv_len * row_stride + kv_head * head_dim
    dk_acc *= scale
    dk += offset
    dv += offset
    store_rows(dk, first_column, row_stride, num_stored, head_dim, dk_acc.to(dk.dtype.element_ty), BLOCK_N, BLOCK_D)
    store_rows(dv, first_column, row_stride, num_stored, head_dim, dv_acc.to(dv.dtype.element_ty), BLOCK_N, BLOCK_D)
