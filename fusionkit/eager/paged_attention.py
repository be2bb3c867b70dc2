"""paged_attention composed of Paddle's own ops, row by row. The lengths are read on the host: not for static graphs."""

from __future__ import annotations

from typing import Any

import paddle

from fusionkit.eager.flash_attention import flash_attention
from fusionkit.eager.precision import compute_dtype
from fusionkit.ops.paged_attention import SMALLEST_SCALE, first_key, row_spans


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
    key_scales: Any = None,
    value_scales: Any = None,
) -> Any:
    caches = (key_cache, key_scales), (value_cache, value_scales)
    num_blocks, _, block_size, _ = key_cache.shape
    lengths = (lens.tolist() for lens in (seq_lens_encoder, seq_lens_decoder, seq_lens_this_time))
    spans = row_spans(q.shape[0], num_blocks, block_size, block_tables.tolist(), *lengths, window=window)
    for token, start, count, blocks in spans:
        for tokens, (cache, scales) in zip((k, v), caches, strict=True):
            new = tokens[token : token + count]
            if scales is not None:
                new, of_new = _quantized(new)
                _write(scales, of_new, start, blocks)
            _write(cache, new, start, blocks)
    rows = []
    for token, start, count, blocks in spans:
        first = first_key(start, window)
        keys, values = (_read(*cache, first, start + count, blocks).cast(q.dtype) for cache in caches)
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
        run = _heads_first(tokens[position - start : stop - start])
        cache[blocks[position // block_size], :, offset : offset + stop - position] = run
        position = stop


def _read(cache: Any, scales: Any, first: int, end: int, blocks: list[int]) -> Any:
    """The positions [first, end) as [1, end - first, kv_heads, head_dim], in the dtype of computing."""
    if scales is not None:
        codes, factors = (_gathered(each, "float32", first, end, blocks) for each in (cache, scales))
        return codes * factors.unsqueeze(-1)
    return _gathered(cache, compute_dtype(cache), first, end, blocks)


def _gathered(cache: Any, dtype: Any, first: int, end: int, blocks: list[int]) -> Any:
    skipped, offset = divmod(first, cache.shape[2])
    found = [_heads_first(cache[block].cast(dtype)) for block in blocks[skipped:]]
    return paddle.concat(found)[offset : offset + end - first].unsqueeze(0)


def _heads_first(block: Any) -> Any:
    """The first two axes change places."""
    return block.transpose([1, 0, *range(2, block.ndim)])


def _quantized(tokens: Any) -> tuple[Any, Any]:
    """(codes, scales) as `fusionkit.ops.paged_attention.quantized` has them. Adding and subtracting 1.5 * 2^23 rounds
    to nearest even."""
    exact = tokens.cast("float32")
    finite = paddle.isfinite(exact).all(axis=-1)
    exact = paddle.where(finite.unsqueeze(-1), exact, paddle.zeros_like(exact))
    largest = exact.abs().max(axis=-1)
    scales = largest / paddle.full_like(largest, 127)  # by a number Paddle multiplies by its inverse
    scales = paddle.maximum(scales, paddle.full_like(scales, SMALLEST_SCALE))
    codes = exact / scales.unsqueeze(-1) + 12582912.0 - 12582912.0
    return codes.cast("int8"), paddle.where(finite, scales, paddle.full_like(scales, float("nan")))


def _within(window: int, start: int, count: int, first: int) -> Any:
    """[1, 1, count, keys from `first` on], True where a key is in the window of a token."""
    tokens = paddle.arange(start, start + count).unsqueeze(-1)
    return (paddle.arange(first, start + count) > tokens - window).unsqueeze([0, 1])
