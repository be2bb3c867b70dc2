"""paged_attention composed of Paddle's own ops, row by row. The lengths are read on the host: not for static graphs."""

from __future__ import annotations

from typing import Any

import paddle

from fusionkit.eager.flash_attention import flash_attention
from fusionkit.eager.precision import compute_dtype
from fusionkit.ops.paged_attention import first_key, row_spans


@paddle.no_grad()  # type: ignore[untyped-decorator]
def paged_attention(
    q: Any,
    k: Any,
    v: Any,
    key_cache: Any,
    value_cache: Any,
    *,
    block_tables: Any,
    seq_lens_encoder: Any,
    seq_lens_decoder: Any,
    seq_lens_this_time: Any,
    scale: float | None = None,
    window: int = 0,
) -> Any:
    num_blocks, _, block_size, _ = key_cache.shape
    lengths = (lens.tolist() for lens in (seq_lens_encoder, seq_lens_decoder, seq_lens_this_time))
    spans = row_spans(q.shape[0], num_blocks, block_size, block_tables.tolist(), *lengths, window=window)
    for token, start, count, blocks in spans:
        _write(key_cache, k[token : token + count], start, blocks)
        _write(value_cache, v[token : token + count], start, blocks)
    rows = []
    for token, start, count, blocks in spans:
        first = first_key(start, window)
        keys, values = (_read(cache, first, start + count, blocks) for cache in (key_cache, value_cache))
        mask = _within(window, start, count, first) if window else None
        queries = q[token : token + count].unsqueeze(0)
        rows.append(flash_attention(queries, keys, values, causal=True, attn_mask=mask, scale=scale)[0])
    return paddle.concat(rows) if rows else paddle.zeros_like(q)


def _write(cache: Any, tokens: Any, start: int, blocks: list[int]) -> None:
    block_size = cache.shape[2]
    position, end = start, start + tokens.shape[0]
    while position < end:
        stop = min(end, (position // block_size + 1) * block_size)
        offset = position % block_size
        run = tokens[position - start : stop - start].transpose([1, 0, 2])
        cache[blocks[position // block_size], :, offset : offset + stop - position] = run
        position = stop


def _read(cache: Any, first: int, end: int, blocks: list[int]) -> Any:
    """The positions [first, end) as [1, end - first, kv_heads, head_dim]."""
    skipped, offset = divmod(first, cache.shape[2])
    found = [cache[block].transpose([1, 0, 2]).cast(compute_dtype(cache)) for block in blocks[skipped:]]
    return paddle.concat(found)[offset : offset + end - first].unsqueeze(0).cast(cache.dtype)


def _within(window: int, start: int, count: int, first: int) -> Any:
    """[1, 1, count, keys from `first` on], True where a key is in the window of a token."""
    tokens = paddle.arange(start, start + count).unsqueeze(-1)
    return (paddle.arange(first, start + count) > tokens - window).unsqueeze([0, 1])
