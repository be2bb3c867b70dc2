"""Causal attention over a cache in blocks, for rows in prefill and rows in decode.

The query heads that share a key head are rows of one tile, so that grouped heads read the cache once. Short rows divide
their keys over several programs, whose partial results a second pass adds in fixed order.

Source: Kwon et al. 2023, arXiv:2309.06180; Dao et al. 2023, Flash-Decoding.
"""

from __future__ import annotations

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.attention_forward import LOG2_E
from fusionkit_backends.gpu.kernels.attention_scores import all_finite, finite_part, spoil
from fusionkit_backends.gpu.kernels.paged_rows import row_of_step

SIZES = [
    "table_row",
    "num_heads",
    "num_key_value_heads",
    "block_size",
    "num_rows",
    "query_blocks",
    "least",
    "most",
    "split_keys",
]


@triton.jit
def load_cached(
    cache, tables, positions, limit, block_stride, slot_stride, block_size, head_dim, BLOCK_D: tl.constexpr
):
    """[len(positions), BLOCK_D] of one head through the row's table; zeros from limit on, where nothing is read."""
    exists, dims = positions < limit, tl.arange(0, BLOCK_D)
    block = tl.load(tables + positions // block_size, mask=exists, other=0).to(tl.int64)
    at = cache + block * block_stride + (positions % block_size).to(tl.int64) * slot_stride
    return tl.load(at[:, None] + dims[None, :], mask=exists[:, None] & (dims < head_dim)[None, :], other=0.0)


@triton.jit
def attend_cached(
    queries,
    last_seen,
    first,
    end,
    key_cache,
    value_cache,
    tables,
    key_block,
    key_slot,
    value_block,
    value_slot,
    block_size,
    head_dim,
    scale,
    CAREFUL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(sums, maxima, totals) of the softmax over the positions first..end that each query sees: up to last_seen.
    CAREFUL: what it does not see may be other than finite."""
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for base in range(first, end, BLOCK_N):
        positions = base + tl.arange(0, BLOCK_N)
        keys = load_cached(key_cache, tables, positions, end, key_block, key_slot, block_size, head_dim, BLOCK_D)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * LOG2_E)
        seen = (positions[None, :] <= last_seen[:, None]) & (positions < end)[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        origin = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights, kept = tl.exp2(scores - origin[:, None]), tl.exp2(top - origin)
        total = total * kept + tl.sum(weights, 1)
        values = load_cached(
            value_cache, tables, positions, end, value_block, value_slot, block_size, head_dim, BLOCK_D
        )
        if CAREFUL:
            clean = finite_part(values)
            acc = tl.dot(weights.to(values.dtype), clean, acc * kept[:, None], input_precision="ieee")
            acc = spoil(acc, scores != float("-inf"), values)
        else:
            acc = tl.dot(weights.to(values.dtype), values, acc * kept[:, None], input_precision="ieee")
        top = new_top
    return acc, top, total


@triton.jit(do_not_specialize=SIZES)
def paged_attention_kernel(
    q,
    key_cache,
    value_cache,
    out,
    partial,
    partial_lse,
    tables,
    firsts,
    encoder,
    decoder,
    this_time,
    q_token,
    q_head,
    key_block,
    key_head,
    key_slot,
    value_block,
    value_head,
    value_slot,
    table_row,
    num_heads,
    num_key_value_heads,
    block_size,
    num_rows,
    query_blocks,
    head_dim,
    least,
    most,
    split_keys,
    scale,
    SPLIT: tl.constexpr,
    CAREFUL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (batch_size * num_key_value_heads * query blocks of the longest row, 1, splits): other axes end at 65535.

    Serves rows of least..most tokens. out is dense; SPLIT: partial [splits, num_rows * most, heads, head_dim] and
    partial_lse [splits, num_rows * most, heads], in powers of 2, take its place, for keys split * split_keys and so on.
    CAREFUL takes again what an earlier launch stored and is not finite, without the keys that a query does not see.
    """
    query_block, unit = tl.program_id(0) % query_blocks, tl.program_id(0) // query_blocks
    row, kv_head = unit // num_key_value_heads, unit % num_key_value_heads
    split = tl.program_id(2)
    first_token, start, count = row_of_step(firsts, encoder, decoder, this_time, row)
    group = num_heads // num_key_value_heads
    members = query_block * BLOCK_M + tl.arange(0, BLOCK_M)  # token of the row * group + head of the group
    if (count >= least) & (count <= most) & (query_block * BLOCK_M < count * group):
        tokens, heads = members // group, kv_head * group + members % group
        exists, dims = members < count * group, tl.arange(0, BLOCK_D)
        columns = (first_token + tokens).to(tl.int64)
        element = exists[:, None] & (dims < head_dim)[None, :]
        queries = tl.load((q + columns * q_token + heads * q_head)[:, None] + dims[None, :], mask=element, other=0.0)
        last_token = tl.minimum((query_block * BLOCK_M + BLOCK_M - 1) // group, count - 1)
        limit = start + last_token + 1
        first, end = split * split_keys, limit
        if SPLIT:
            end = tl.minimum(limit, first + split_keys)
        tables += row.to(tl.int64) * table_row
        key_cache += kv_head.to(tl.int64) * key_head
        value_cache += kv_head.to(tl.int64) * value_head
        if CAREFUL:
            made_at = columns * num_heads + heads
            if SPLIT:
                made_at += ((split.to(tl.int64) * num_rows + row) * most - first_token) * num_heads
                made = tl.load((partial + made_at * head_dim)[:, None] + dims[None, :], mask=element, other=0.0)
            else:
                made = tl.load((out + made_at * head_dim)[:, None] + dims[None, :], mask=element, other=0.0)
            if all_finite(made):
                end = first
                exists = exists & (members < 0)
                element = element & (members < 0)[:, None]
        acc, top, total = attend_cached(
            queries, start + tokens, first, end, key_cache, value_cache, tables, key_block, key_slot, value_block,
            value_slot, block_size, head_dim, scale, CAREFUL, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        place = columns * num_heads + heads
        if SPLIT:  # moved by whole tokens: places of their own for the block's rows would spill registers
            place += ((split.to(tl.int64) * num_rows + row) * most - first_token) * num_heads
            lse = tl.where(total == 0.0, float("-inf"), top + tl.log2(total))
            tl.store(partial_lse + place, lse, mask=exists)
            tl.store((partial + place * head_dim)[:, None] + dims[None, :], acc, mask=element)
        else:
            tl.store((out + place * head_dim)[:, None] + dims[None, :], acc.to(out.dtype.element_ty), mask=element)


@triton.jit(do_not_specialize=["num_heads", "num_rows", "most", "num_splits"])
def add_splits_kernel(
    partial,
    partial_lse,
    out,
    firsts,
    encoder,
    decoder,
    this_time,
    num_heads,
    num_rows,
    head_dim,
    most,
    num_splits,
    BLOCK_D: tl.constexpr,
):
    """out = sum_s 2^(lse_s - top) partial_s / sum_s 2^(lse_s - top).

    Grid (batch_size * most tokens of a row, 1, heads)."""
    index, row, head = tl.program_id(0) % most, tl.program_id(0) // most, tl.program_id(2)
    first, _, count = row_of_step(firsts, encoder, decoder, this_time, row)
    if (index < count) & (count <= most):
        dims = tl.arange(0, BLOCK_D)
        place = (row.to(tl.int64) * most + index) * num_heads + head
        top, total = float("-inf"), 0.0
        acc = tl.zeros([BLOCK_D], tl.float32)
        for _ in range(num_splits):
            lse = tl.load(partial_lse + place)
            new_top = tl.maximum(top, lse)  # finite: the first split holds position 0, which every token sees
            kept, weight = tl.exp2(top - new_top), tl.exp2(lse - new_top)
            values = tl.load(partial + place * head_dim + dims, mask=dims < head_dim, other=0.0)
            acc, total, top = acc * kept + values * weight, total * kept + weight, new_top
            place += num_rows.to(tl.int64) * most * num_heads
        place = ((first + index).to(tl.int64) * num_heads + head) * head_dim
        tl.store(out + place + dims, (acc / total).to(out.dtype.element_ty), mask=dims < head_dim)
