"""Which blocks of a packed sequence attend at all: a list for each block of queries, or of keys.

With documents of one thousandth of the sequence, nearly every block is hidden; the attention kernels walk the lists and
never look at the others.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
        tl.store(to + 2 * column, tl.min(tl.load(at + column, mask=exists, other=2147483647), 0))
        tl.store(to + 2 * column + 1, tl.max(tl.load(at + column, mask=exists, other=-2147483648), 0))


@triton.jit
def some_pair_attends(
    first_row,
    last_row,
    first_column,
    extremes,
    exists,
    q_len,
    kv_len,
    CAUSAL: tl.constexpr,
    NUM_BOUNDS: tl.constexpr,
):
    """False only if no row first_row..last_row sees a key of the block; arguments broadcast. Hidden means that each
    row lies in the range of every key: between the greatest start and the least end."""
    hidden = first_row >= tl.load(extremes + 1, mask=exists, other=0)
    if NUM_BOUNDS == 2:
        before = last_row < tl.load(extremes + 2, mask=exists, other=0)
        hidden = (hidden & before) if CAUSAL else (hidden | before)
    if NUM_BOUNDS == 4:
        hidden = hidden & (last_row < tl.load(extremes + 2, mask=exists, other=0))
        second = first_row >= tl.load(extremes + 5, mask=exists, other=0)
        hidden = hidden | (second & (last_row < tl.load(extremes + 6, mask=exists, other=0)))
    if CAUSAL:
        hidden = hidden | (first_column > last_row + (kv_len - q_len))
    return exists & (hidden == 0)


@triton.jit(do_not_specialize=["q_len", "kv_len", "num_listed", "num_programs", "num_key_blocks"])
def attending_blocks_kernel(
    extremes,
    blocks,
    counts,
    q_len,
    kv_len,
    num_listed,
    num_programs,
    num_key_blocks,
    CAUSAL: tl.constexpr,
    NUM_BOUNDS: tl.constexpr,
    BY_QUERY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """blocks [heads, programs, num_listed], ascending; counts [heads, programs]. Grid (heads * programs): BY_QUERY a
    program is a block of queries and lists key blocks, else the other way round."""
    head, own = (tl.program_id(0) // num_programs).to(tl.int64), tl.program_id(0) % num_programs
    listed = head * num_programs + own
    extremes += head * num_key_blocks * NUM_BOUNDS * 2
    count = 0
    for start in range(0, num_listed, CHUNK):
        others = start + tl.arange(0, CHUNK)
        query_block = own if BY_QUERY else others
        key_block = others if BY_QUERY else own
        last_row = tl.minimum(query_block * BLOCK_M + BLOCK_M, q_len) - 1
        attending = some_pair_attends(
            query_block * BLOCK_M, last_row, key_block * BLOCK_N, extremes + key_block * NUM_BOUNDS * 2 + others * 0,
            others < num_listed, q_len, kv_len, CAUSAL, NUM_BOUNDS,
        ).to(tl.int32)  # fmt: skip
        position = count + tl.cumsum(attending, 0) - attending
        tl.store(blocks + listed * num_listed + position, others, mask=attending != 0)
        count += tl.sum(attending, 0)
    tl.store(counts + listed, count)
