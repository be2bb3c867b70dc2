"""flash_attention forward: one program for block_m queries of one head, over its keys in blocks of block_n.

Source: Dao 2023, arXiv:2307.08691, algorithm 1.
"""

from __future__ import annotations

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.attention_arguments import SIZES, Mask, Pairs, Sizes
from fusionkit_backends.gpu.kernels.attention_careful import to_mend, without_dropped
from fusionkit_backends.gpu.kernels.attention_programs import key_range, query_program
from fusionkit_backends.gpu.kernels.attention_scores import (
    LOG2_E,
    dense_rows_of,
    load_rows,
    masked_scores,
    rows_of,
    score_factor,
    store_rows,
)

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def accumulate(
    acc, top, total, q, k, v, first_row, first, last, pairs, factor, CHECKED: tl.constexpr, PATHS: tl.constexpr
):
    """Key blocks first..last into the running softmax. CHECKED: some pairs may not attend; with PATHS.careful, which
    is beside CHECKED, values may be other than finite. factor >= 0."""
    sizes = pairs.sizes
    for index in range(first, last):
        block = tl.load(pairs.blocks + index) if PATHS.num_bounds > 0 else index
        first_column = block * PATHS.block_n
        keys = load_rows(k, first_column, sizes.kv_len, sizes.head_dim, PATHS.block_n, PATHS)
        products = tl.dot(q, tl.trans(keys), input_precision="ieee")
        if CHECKED:
            scores = masked_scores(
                products, first_row, tl.arange(0, PATHS.block_m)[:, None], first_column,
                tl.arange(0, PATHS.block_n)[None, :], pairs, factor, PATHS,
            )  # fmt: skip
            new_top = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row that has seen no key yet
            # Written twice: with a function for both the block of head_dim 256 on sm_90 spilled 8 bytes, as its line
            # numbers, one level deeper, order ptxas's work otherwise.
            if PATHS.float_mask:  # scores are powers of e (score_factor)
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
        values = load_rows(v, first_column, sizes.kv_len, sizes.head_dim, PATHS.block_n, PATHS)
        acc *= kept[:, None]
        if PATHS.careful:
            acc, values = without_dropped(acc, scores != float("-inf"), values)
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
        top = new_top
    return acc, top, total


@triton.jit(do_not_specialize=SIZES)
def attention_forward_kernel(
    q, k, v, out, lse, parts, mask, lists, mask_batch, mask_head, bound_heads, max_blocks, q_len, kv_len, num_heads,
    num_key_value_heads, head_dim, scale, PATHS: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks * batch_size * num_heads), blocks first: other axes end at 65535. out, lse, parts are dense.

    scale >= 0; PATHS.negative turns its sign.

    PATHS.in_parts also keeps the two addends of lse, in the units of the scores: their sum is rounded, and under a
    finite minimum of -65504 the gradients of float32 would lose 16 bits by that.
    parts: [batch_size, num_heads, q_len, 2].
    """
    BLOCK_M: tl.constexpr = PATHS.block_m
    BLOCK_D: tl.constexpr = PATHS.block_d
    query_block, head_index, batch, head, kv_head = query_program(q_len, num_heads, num_key_value_heads, PATHS)
    first_row = query_block * PATHS.block_m
    queries = load_rows(rows_of(q, batch, head), first_row, q_len, head_dim, PATHS.block_m, PATHS)
    if PATHS.negative:
        queries = (-queries.to(tl.float32)).to(queries.dtype)
    k, v = rows_of(k, batch, kv_head), rows_of(v, batch, kv_head)
    mask = Mask(mask.at + (batch * mask_batch + head * mask_head), mask.row, mask.column)
    factor = score_factor(scale, PATHS)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    whole, end, bounds, blocks = key_range(
        query_block, batch, kv_head, lists, bound_heads, max_blocks, q_len, kv_len, PATHS
    )
    pairs = Pairs(mask, bounds, blocks, Sizes(q_len, kv_len, head_dim))
    out = dense_rows_of(out, batch, head, q_len, num_heads, head_dim)
    num_stored = q_len
    if PATHS.careful:
        mend = to_mend(load_rows(out, first_row, q_len, head_dim, PATHS.block_m, PATHS))
        end, num_stored = tl.where(mend, end, 0), tl.where(mend, q_len, 0)
    if PATHS.skips:
        acc, top, total = accumulate(acc, top, total, queries, k, v, first_row, 0, whole, pairs, factor, False, PATHS)
    acc, top, total = accumulate(acc, top, total, queries, k, v, first_row, whole, end, pairs, factor, True, PATHS)
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    acc = acc / total[:, None]
    log_total = tl.log(total) if PATHS.float_mask else tl.log2(total)
    log_sum = top + log_total if PATHS.float_mask else (top + log_total) * LN_2
    rows = first_row + tl.arange(0, PATHS.block_m)
    row_at = head_index.to(tl.int64) * q_len + rows
    tl.store(lse + row_at, tl.where(empty, float("-inf"), log_sum), mask=rows < num_stored)
    if PATHS.in_parts:
        tl.store(parts + row_at * 2, tl.where(empty, 0.0, top), mask=rows < num_stored)
        tl.store(parts + row_at * 2 + 1, log_total, mask=rows < num_stored)
    store_rows(out, first_row, num_stored, head_dim, acc, PATHS.block_m, PATHS)
