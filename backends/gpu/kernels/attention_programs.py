"""Which part of the attention a program computes: its block of queries, and the key blocks that it walks."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def query_program(q_len, num_heads, num_key_value_heads, PATHS: tl.constexpr):
    """(query block, index of batch and head, batch, head, key head) of a grid (query blocks * batch_size * heads)."""
    num_blocks = tl.cdiv(q_len, PATHS.block_m)
    query_block, head_index = tl.program_id(0) % num_blocks, tl.program_id(0) // num_blocks
    if PATHS.causal:  # the blocks with the most keys start first
        query_block = num_blocks - 1 - query_block
    batch, head = (head_index // num_heads).to(tl.int64), head_index % num_heads
    kv_head = (head // (num_heads // num_key_value_heads)).to(tl.int64)  # head * stride can pass 2^31
    return query_block, head_index, batch, head.to(tl.int64), kv_head


@triton.jit
def key_range(query_block, batch, kv_head, lists, bound_heads, max_blocks, q_len, kv_len, PATHS: tl.constexpr):
    """(whole, end, bounds, blocks): the key blocks that every row sees whole, and those that some row sees, counted
    from key 0. With bounds `blocks` lists them. Where no block is skipped, none counts as whole."""
    whole, end = kv_len // PATHS.block_n, tl.cdiv(kv_len, PATHS.block_n)
    bounds, blocks = lists.bounds, lists.blocks
    if PATHS.causal:
        first_hidden = query_block * PATHS.block_m + 1 + kv_len - q_len
        whole = tl.minimum(whole, tl.maximum(first_hidden, 0) // PATHS.block_n)
        end = tl.minimum(end, tl.cdiv(tl.maximum(first_hidden + PATHS.block_m - 1, 0), PATHS.block_n))
    if PATHS.num_bounds > 0:
        bound_head = batch * bound_heads + tl.minimum(kv_head, bound_heads - 1)
        bounds += bound_head * kv_len * PATHS.num_bounds
        listed = bound_head * tl.cdiv(q_len, PATHS.block_m) + query_block
        blocks += listed * max_blocks
        end = tl.load(lists.counts + listed)
    if not PATHS.skips:
        whole = 0
    return whole, end, bounds, blocks


@triton.jit
def query_range(key_block, batch, kv_head, lists, bound_heads, max_blocks, q_len, kv_len, PATHS: tl.constexpr):
    """(first, whole, end, bounds, blocks): the query blocks with a row that sees a key of the block, and those from
    `whole` on whose every row sees it whole. Where no block is skipped, none counts as whole."""
    first, end = 0, tl.cdiv(q_len, PATHS.block_m)
    whole = 0
    bounds, blocks = lists.bounds, lists.blocks
    if PATHS.causal:
        first_seeing = key_block * PATHS.block_n + q_len - kv_len
        first = tl.maximum(first_seeing, 0) // PATHS.block_m
        whole = tl.minimum(tl.cdiv(tl.maximum(first_seeing + PATHS.block_n - 1, 0), PATHS.block_m), end)
    if PATHS.num_bounds > 0:
        bound_head = batch * bound_heads + (kv_head if bound_heads > 1 else 0)
        bounds += bound_head * kv_len * PATHS.num_bounds
        listed = bound_head * tl.cdiv(kv_len, PATHS.block_n) + key_block
        blocks += listed * max_blocks
        first, end = 0, tl.load(lists.counts + listed)
    if not PATHS.skips:
        whole = end
    return first, whole, end, bounds, blocks
