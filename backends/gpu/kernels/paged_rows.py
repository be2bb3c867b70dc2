"""The rows of a step over a paged cache: what they ask for, whether it fits, and their new keys and values stored."""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = tl.constexpr(1024)


@triton.jit
def row_of_step(rows, row):
    """(first token in q, first position, tokens) of the row."""
    position = 0
    if tl.load(rows.encoder + row) <= 0:
        position = tl.load(rows.decoder + row)
    return tl.load(rows.firsts + row), position, tl.load(rows.this_time + row)


@triton.jit(do_not_specialize=["num_rows"])
def first_tokens_kernel(this_time, firsts, num_rows):
    """firsts [num_rows] int32: the tokens of the rows before each. Grid (1): a sum by every row for itself would take
    time that grows with the square of the rows."""
    before = 0
    for start in range(0, num_rows, CHUNK):
        rows = start + tl.arange(0, CHUNK)
        counts = tl.load(this_time + rows, mask=rows < num_rows, other=0)
        tl.store(firsts + rows, before + tl.cumsum(counts, 0) - counts, mask=rows < num_rows)
        before += tl.sum(counts, 0)


@triton.jit(do_not_specialize=["table_row", "max_blocks", "num_blocks", "block_size"])
def inspect_rows_kernel(
    encoder, decoder, this_time, tables, found, table_row, max_blocks, num_blocks, block_size, CHUNK: tl.constexpr
):
    """found [batch_size, 3] int32: the row's first position, its tokens, and 1 where the op's rules are broken.

    Grid (batch_size). So the host waits for twelve bytes a row once, and not for the tables.
    """
    row = tl.program_id(0)
    prompt, count = tl.load(encoder + row), tl.load(this_time + row)
    position = tl.where(prompt > 0, 0, tl.load(decoder + row))
    needed = tl.cdiv(position + count, block_size)
    wrong = (prompt < 0) | (position < 0) | (needed > max_blocks) | ((prompt > 0) & (count != prompt))
    outside = 0
    for start in range(0, tl.minimum(needed, max_blocks), CHUNK):
        others = start + tl.arange(0, CHUNK)
        block = tl.load(
            tables + row.to(tl.int64) * table_row + others, mask=others < tl.minimum(needed, max_blocks), other=0
        )
        outside += tl.sum(((block < 0) | (block >= num_blocks)).to(tl.int32), 0)
    broken = (count < 0) | ((count > 0) & (wrong | (outside > 0)))
    tl.store(found + row * 3, position)
    tl.store(found + row * 3 + 1, count)
    tl.store(found + row * 3 + 2, broken.to(tl.int32))


@triton.jit(do_not_specialize=["table_row", "num_heads", "most", "block_size"])
def store_tokens_kernel(
    k, v, key_cache, value_cache, rows, tables, table_row, num_heads, most, block_size, head_dim,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """key_cache, value_cache get k, v. Grid (batch_size * most tokens of a row, 1, blocks of heads)."""
    index, row = tl.program_id(0) % most, tl.program_id(0) // most
    first, position, count = row_of_step(rows, row)
    if index < count:
        position += index
        token = (first + index).to(tl.int64)
        block = tl.load(tables + row.to(tl.int64) * table_row + position // block_size).to(tl.int64)
        slot = (position % block_size).to(tl.int64)
        heads, dims = (tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None], tl.arange(0, BLOCK_D)[None, :]
        exists = (heads < num_heads) & (dims < head_dim)
        keys = tl.load(k.at + token * k.token + heads * k.head + dims, mask=exists)
        values = tl.load(v.at + token * v.token + heads * v.head + dims, mask=exists)
        heads = heads.to(tl.int64)
        store_cached(key_cache, block, heads, slot, dims, keys, exists)
        store_cached(value_cache, block, heads, slot, dims, values, exists)


@triton.jit
def store_cached(cache, block, heads, slot, dims, values, exists):
    tl.store(cache.at + block * cache.block + heads * cache.head + slot * cache.slot + dims, values, mask=exists)
