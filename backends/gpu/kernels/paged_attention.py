"""Causal attention over a cache in blocks, for rows in prefill and rows in decode.

The query heads that share a key head are rows of one tile, so that grouped heads read the cache once. Short rows divide
their keys over several programs, whose partial results a second pass adds in fixed order.

Source: Kwon et al. 2023, arXiv:2309.06180; Dao et al. 2023, Flash-Decoding.
"""

from __future__ import annotations

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.attention_careful import to_mend, without_dropped
from fusionkit_backends.gpu.kernels.attention_scores import LOG2_E
from fusionkit_backends.gpu.kernels.paged_arguments import Cache
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
def head_of(cache, head):
    return Cache(cache.at + head.to(tl.int64) * cache.head, cache.block, cache.head, cache.slot)


@triton.jit
def load_cached(cache, tables, positions, limit, block_size, head_dim, PATHS: tl.constexpr):
    """[len(positions), block_d] of one head through the row's table; zeros from limit on, where nothing is read."""
    exists, dims = positions < limit, tl.arange(0, PATHS.block_d)
    block = tl.load(tables + positions // block_size, mask=exists, other=0).to(tl.int64)
    at = cache.at + block * cache.block + (positions % block_size).to(tl.int64) * cache.slot
    return tl.load(at[:, None] + dims[None, :], mask=exists[:, None] & (dims < head_dim)[None, :], other=0.0)


@triton.jit
def attend_cached(
    queries, last_seen, first, end, key_cache, value_cache, tables, block_size, head_dim, scale, PATHS: tl.constexpr
):
    """(sums, maxima, totals) of the softmax over the positions first..end that each query sees: up to last_seen.
    PATHS.careful: what it does not see may be other than finite."""
    BLOCK_M: tl.constexpr = PATHS.block_m
    BLOCK_D: tl.constexpr = PATHS.block_d
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for base in range(first, end, PATHS.block_n):
        positions = base + tl.arange(0, PATHS.block_n)
        keys = load_cached(key_cache, tables, positions, end, block_size, head_dim, PATHS)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * LOG2_E)
        seen = (positions[None, :] <= last_seen[:, None]) & (positions < end)[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        origin = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights, kept = tl.exp2(scores - origin[:, None]), tl.exp2(top - origin)
        total = total * kept + tl.sum(weights, 1)
        values = load_cached(value_cache, tables, positions, end, block_size, head_dim, PATHS)
        acc *= kept[:, None]
        if PATHS.careful:
            acc, values = without_dropped(acc, scores != float("-inf"), values)
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
        top = new_top
    return acc, top, total


@triton.jit
def place_of(columns, heads, first_token, row, num_heads, num_rows, most, PATHS: tl.constexpr):
    """Where the results of tokens and heads stand, in units of head_dim: in out, or in this split's part of partial.
    Moved there by whole tokens: places of their own for the block's rows would spill registers."""
    place = columns * num_heads + heads
    if PATHS.split:
        place += ((tl.program_id(2).to(tl.int64) * num_rows + row) * most - first_token) * num_heads
    return place


@triton.jit(do_not_specialize=SIZES)
def paged_attention_kernel(
    q, key_cache, value_cache, out, partial, partial_lse, rows, tables, table_row, num_heads, num_key_value_heads,
    block_size, num_rows, query_blocks, head_dim, least, most, split_keys, scale, PATHS: tl.constexpr,
):  # fmt: skip
    """Grid (batch_size * num_key_value_heads * query blocks of the longest row, 1, splits): other axes end at 65535.

    Serves rows of least..most tokens. out is dense; split: partial [splits, num_rows * most, heads, head_dim] and
    partial_lse [splits, num_rows * most, heads], in powers of 2, take its place, for keys split * split_keys and so on.
    """
    query_block, unit = tl.program_id(0) % query_blocks, tl.program_id(0) // query_blocks
    row, kv_head = unit // num_key_value_heads, unit % num_key_value_heads
    first_token, start, count = row_of_step(rows, row)
    group = num_heads // num_key_value_heads
    members = query_block * PATHS.block_m + tl.arange(0, PATHS.block_m)  # token of the row * group + head of the group
    if (count >= least) & (count <= most) & (query_block * PATHS.block_m < count * group):
        tokens, heads = members // group, kv_head * group + members % group
        exists, dims = members < count * group, tl.arange(0, PATHS.block_d)
        columns = (first_token + tokens).to(tl.int64)
        element = exists[:, None] & (dims < head_dim)[None, :]
        at = q.at + columns * q.token + heads * q.head
        queries = tl.load(at[:, None] + dims[None, :], mask=element, other=0.0)
        last_token = tl.minimum((query_block * PATHS.block_m + PATHS.block_m - 1) // group, count - 1)
        limit = start + last_token + 1
        first, end = tl.program_id(2) * split_keys, limit
        if PATHS.split:
            end = tl.minimum(limit, first + split_keys)
        tables += row.to(tl.int64) * table_row
        keys, values = head_of(key_cache, kv_head), head_of(value_cache, kv_head)
        results = partial if PATHS.split else out
        if PATHS.careful:
            place = place_of(columns, heads, first_token, row, num_heads, num_rows, most, PATHS)
            made = tl.load((results + place * head_dim)[:, None] + dims[None, :], mask=element, other=0.0)
            if to_mend(made) == 0:  # a branch: selections in its place spilled on sm_80
                end = first
                exists = exists & (members < 0)
                element = element & (members < 0)[:, None]
        acc, top, total = attend_cached(
            queries, start + tokens, first, end, keys, values, tables, block_size, head_dim, scale, PATHS
        )
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        place = place_of(columns, heads, first_token, row, num_heads, num_rows, most, PATHS)
        if PATHS.split:
            lse = tl.where(total == 0.0, float("-inf"), top + tl.log2(total))
            tl.store(partial_lse + place, lse, mask=exists)
        acc = acc.to(results.dtype.element_ty)
        tl.store((results + place * head_dim)[:, None] + dims[None, :], acc, mask=element)


@triton.jit(do_not_specialize=["num_heads", "num_rows", "most", "num_splits"])
def add_splits_kernel(
    partial, partial_lse, out, rows, num_heads, num_rows, head_dim, most, num_splits, BLOCK_D: tl.constexpr
):
    """out = sum_s 2^(lse_s - top) partial_s / sum_s 2^(lse_s - top).

    Grid (batch_size * most tokens of a row, 1, heads)."""
    index, row, head = tl.program_id(0) % most, tl.program_id(0) // most, tl.program_id(2)
    first, _, count = row_of_step(rows, row)
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
