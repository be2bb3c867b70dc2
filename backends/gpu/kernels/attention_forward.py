"""flash_attention forward: one program for BLOCK_M queries of one head, over its keys in blocks of BLOCK_N.

Source: Dao 2023, arXiv:2307.08691, algorithm 1.
"""

from __future__ import annotations

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.attention_scores import (
    SIZES,
    all_finite,
    finite_part,
    load_rows,
    masked_scores,
    spoil,
    store_rows,
)

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def key_range(first_row, q_len, kv_len, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(blocks that every row of the block sees whole, blocks that some row sees), both counted from key 0."""
    whole, end = kv_len // BLOCK_N, tl.cdiv(kv_len, BLOCK_N)
    if CAUSAL:
        first_hidden = first_row + 1 + kv_len - q_len
        whole = tl.minimum(whole, tl.maximum(first_hidden, 0) // BLOCK_N)
        end = tl.minimum(end, tl.cdiv(tl.maximum(first_hidden + BLOCK_M - 1, 0), BLOCK_N))
    return whole, end


@triton.jit
def accumulate(
    acc,
    top,
    total,
    q,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    """Key blocks first..last into the running softmax. Scores are in powers of 2, with a floating mask in powers of e:
    the lowest finite float32 times log2(e) would be -inf. CHECKED: some pairs may not attend. CAREFUL,
    beside CHECKED: values may be other than finite. factor >= 0."""
    for index in range(first, last):
        block = tl.load(blocks + index) if LISTED else index
        first_column = block * BLOCK_N
        keys = load_rows(k, first_column, k_stride, kv_len, head_dim, BLOCK_N, BLOCK_D, PADDED_D)
        products = tl.dot(q, tl.trans(keys), input_precision="ieee")
        if CHECKED:
            scores = masked_scores(
                products, first_row, tl.arange(0, BLOCK_M)[:, None], first_column, tl.arange(0, BLOCK_N)[None, :],
                q_len, kv_len, mask, mask_row, mask_column, bounds, factor, CAUSAL, MASK, NUM_BOUNDS,
            )  # fmt: skip
            new_top = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row that has seen no key yet
            if MASK == 2:
                weights = tl.exp2((scores - base[:, None]) * LOG2_E)
                kept = tl.exp2((top - base) * LOG2_E)
            else:
                weights = tl.exp2(scores - base[:, None])
                kept = tl.exp2(top - base)
        else:
            new_top = tl.maximum(top, tl.max(products, 1) * factor)
            weights = tl.exp2(products * factor - new_top[:, None])
            kept = tl.exp2(top - new_top)
        total = total * kept + tl.sum(weights, 1)
        values = load_rows(v, first_column, v_stride, kv_len, head_dim, BLOCK_N, BLOCK_D, PADDED_D)
        if CAREFUL:
            clean = finite_part(values)
            acc = tl.dot(weights.to(values.dtype), clean, acc * kept[:, None], input_precision="ieee")
            acc = spoil(acc, scores != float("-inf"), values)
        else:
            acc = tl.dot(weights.to(values.dtype), values, acc * kept[:, None], input_precision="ieee")
        top = new_top
    return acc, top, total


@triton.jit(do_not_specialize=SIZES)
def attention_forward_kernel(
    q,
    k,
    v,
    out,
    lse,
    parts,
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
    NEGATIVE: tl.constexpr,
    IN_PARTS: tl.constexpr,
    CAREFUL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    """Grid (query blocks * batch_size * num_heads), blocks first: other axes end at 65535. out and lse are dense.

    CAREFUL takes again what an earlier launch left in `out` and is not finite, without the dropped pairs.

    scale >= 0; NEGATIVE turns its sign.

    IN_PARTS also keeps the two addends of lse, in the units of the scores: their sum is rounded, and under a finite
    minimum of -65504 the gradients of float32 would lose 16 bits by that. parts: [batch_size, num_heads, q_len, 2].
    With bounds, `blocks` and `counts` list the key blocks that some row of the query block sees.
    """
    num_blocks = tl.cdiv(q_len, BLOCK_M)
    query_block, head_index = tl.program_id(0) % num_blocks, tl.program_id(0) // num_blocks
    if CAUSAL:  # the blocks with the most keys start first
        query_block = num_blocks - 1 - query_block
    batch, head = (head_index // num_heads).to(tl.int64), head_index % num_heads
    kv_head = (head // (num_heads // num_key_value_heads)).to(tl.int64)  # head * stride can pass 2^31
    head = head.to(tl.int64)
    first_row = query_block * BLOCK_M
    q += batch * q_batch + head * q_head
    queries = load_rows(q, first_row, q_row, q_len, head_dim, BLOCK_M, BLOCK_D, PADDED_D)
    if NEGATIVE:
        queries = (-queries.to(tl.float32)).to(queries.dtype)
    k += batch * k_batch + kv_head * k_head
    v += batch * v_batch + kv_head * v_head
    mask += batch * mask_batch + head * mask_head
    factor = scale if MASK == 2 else scale * LOG2_E
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    whole, end = key_range(first_row, q_len, kv_len, CAUSAL, BLOCK_M, BLOCK_N)
    if NUM_BOUNDS > 0:
        bound_head = batch * bound_heads + tl.minimum(kv_head, bound_heads - 1)
        bounds += bound_head * kv_len * NUM_BOUNDS
        listed = bound_head * num_blocks + query_block
        blocks += listed * max_blocks
        end = tl.load(counts + listed)
    row_stride = num_heads * head_dim
    out += batch * q_len * row_stride + head * head_dim
    num_stored = q_len
    if CAREFUL:
        made = load_rows(out, first_row, row_stride, q_len, head_dim, BLOCK_M, BLOCK_D, PADDED_D)
        if all_finite(made):
            end, num_stored = 0, 0
    if MASK != 0 or NUM_BOUNDS > 0 or CAREFUL:
        whole = 0
    else:
        acc, top, total = accumulate(
            acc, top, total, queries, k, v, first_row, 0, whole, blocks, k_row, v_row, q_len, kv_len, head_dim, mask,
            mask_row, mask_column, bounds, factor, False, False, False, CAUSAL, MASK, NUM_BOUNDS, BLOCK_M, BLOCK_N,
            BLOCK_D, PADDED_D,
        )  # fmt: skip
    acc, top, total = accumulate(
        acc, top, total, queries, k, v, first_row, whole, end, blocks, k_row, v_row, q_len, kv_len, head_dim, mask,
        mask_row, mask_column, bounds, factor, True, CAREFUL, NUM_BOUNDS > 0, CAUSAL, MASK, NUM_BOUNDS, BLOCK_M,
        BLOCK_N, BLOCK_D, PADDED_D,
    )  # fmt: skip
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    acc = acc / total[:, None]
    log_total = tl.log(total) if MASK == 2 else tl.log2(total)
    log_sum = top + log_total if MASK == 2 else (top + log_total) * LN_2
    rows = first_row + tl.arange(0, BLOCK_M)
    row_at = head_index.to(tl.int64) * q_len + rows
    tl.store(lse + row_at, tl.where(empty, float("-inf"), log_sum), mask=rows < num_stored)
    if IN_PARTS:
        tl.store(parts + row_at * 2, tl.where(empty, 0.0, top), mask=rows < num_stored)
        tl.store(parts + row_at * 2 + 1, log_total, mask=rows < num_stored)
    store_rows(out, first_row, row_stride, num_stored, head_dim, acc.to(out.dtype.element_ty), BLOCK_M, BLOCK_D)
