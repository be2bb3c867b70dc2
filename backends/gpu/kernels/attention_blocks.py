"""Which blocks of a packed sequence attend at all: a list for each block of queries, or of keys.

With documents of one thousandth of the sequence, nearly every block is hidden; the attention kernels walk the lists and
never look at the others.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

CHUNK = tl.constexpr(128)  # blocks that a program of attending_blocks_kernel judges at once

# No bound is less, or greater: what stands for a key beyond the last, int32's own limits.
LEAST, GREATEST = tl.constexpr(-(2**31)), tl.constexpr(2**31 - 1)


class Paths(NamedTuple):
    """What attending_blocks_kernel is compiled for.

    Args:
        block_m, block_n: queries and keys in a block.
        causal: as the op's.
        num_bounds: columns of startend_row_indices.
        by_query: a program is a block of queries and lists key blocks; else the other way round.
    """

    block_m: int
    block_n: int
    causal: bool
    num_bounds: int
    by_query: bool


@triton.jit(do_not_specialize=["kv_len", "num_key_blocks"])
def bound_extremes_kernel(bounds, extremes, kv_len, num_key_blocks, NUM_BOUNDS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Least and greatest of each column in a block of keys. bounds [heads, kv_len, NUM_BOUNDS] ->
    extremes [heads, blocks, NUM_BOUNDS, 2]. Grid (heads * blocks)."""
    head, block = (tl.program_id(0) // num_key_blocks).to(tl.int64), tl.program_id(0) % num_key_blocks
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = columns < kv_len
    at = bounds + (head * kv_len + columns) * NUM_BOUNDS
    to = extremes + (head * num_key_blocks + block) * NUM_BOUNDS * 2
    for column in tl.static_range(NUM_BOUNDS):
        tl.store(to + 2 * column, tl.min(tl.load(at + column, mask=exists, other=GREATEST), 0))
        tl.store(to + 2 * column + 1, tl.max(tl.load(at + column, mask=exists, other=LEAST), 0))


@triton.jit
def least(extremes, column: tl.constexpr, exists):
    return tl.load(extremes + 2 * column, mask=exists, other=0)


@triton.jit
def greatest(extremes, column: tl.constexpr, exists):
    return tl.load(extremes + 2 * column + 1, mask=exists, other=0)


@triton.jit
def some_pair_attends(first_row, last_row, first_column, extremes, exists, q_len, kv_len, PATHS: tl.constexpr):
    """False only if no row first_row..last_row sees a key of the block; arguments broadcast. Hidden means that each
    row lies in the range of every key: between the greatest start and the least end."""
    hidden = first_row >= greatest(extremes, 0, exists)
    if PATHS.num_bounds == 2:
        before = last_row < least(extremes, 1, exists)
        hidden = (hidden & before) if PATHS.causal else (hidden | before)
    if PATHS.num_bounds == 4:
        hidden = hidden & (last_row < least(extremes, 1, exists))
        second = first_row >= greatest(extremes, 2, exists)
        hidden = hidden | (second & (last_row < least(extremes, 3, exists)))
    if PATHS.causal:
        hidden = hidden | (first_column > last_row + (kv_len - q_len))
    return exists & (hidden == 0)


@triton.jit(do_not_specialize=["q_len", "kv_len", "num_listed", "num_programs", "num_key_blocks"])
def attending_blocks_kernel(
    extremes, blocks, counts, q_len, kv_len, num_listed, num_programs, num_key_blocks, PATHS: tl.constexpr
):
    """blocks [heads, programs, num_listed], ascending; counts [heads, programs]. Grid (heads * programs)."""
    head, own = (tl.program_id(0) // num_programs).to(tl.int64), tl.program_id(0) % num_programs
    listed = head * num_programs + own
    extremes += head * num_key_blocks * PATHS.num_bounds * 2
    count = 0
    for start in range(0, num_listed, CHUNK):
        others = start + tl.arange(0, CHUNK)
        query_block = own if PATHS.by_query else others
        key_block = others if PATHS.by_query else own
        first_row = query_block * PATHS.block_m
        last_row = tl.minimum(first_row + PATHS.block_m, q_len) - 1
        of_block = extremes + key_block * PATHS.num_bounds * 2 + others * 0
        attending = some_pair_attends(
            first_row, last_row, key_block * PATHS.block_n, of_block, others < num_listed, q_len, kv_len, PATHS
        ).to(tl.int32)
        position = count + tl.cumsum(attending, 0) - attending
        tl.store(blocks + listed * num_listed + position, others, mask=attending != 0)
        count += tl.sum(attending, 0)
    tl.store(counts + listed, count)
