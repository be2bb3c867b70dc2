"""paged_attention for PyTorch's tensors. The caches are written where they are.

The op promises an error for lengths and tables that do not fit, and grids need the longest row: so the host waits for
the device once in a call, for twelve bytes a row. That rules out CUDA graphs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from fusionkit_backends.gpu.autograd.flash_attention import dense_last, empty
from fusionkit_backends.gpu.kernels import paged

from fusionkit.errors import argument_error
from fusionkit.ops.paged_attention import row_spans


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
) -> Any:
    require_sizes(q, k, v, key_cache, value_cache, block_tables, seq_lens_encoder, seq_lens_decoder, seq_lens_this_time)
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        if cache.stride(-1) != 1 and cache.numel():
            rule, advice = "of a dense last axis, because it is updated in place", "Keep head_dim the last axis"
            raise argument_error("paged_attention", name, rule, f"strides {cache.stride()}", advice=advice)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    q, k, v, tables = (dense_last(x) for x in (q, k, v, block_tables))
    lengths = [x.contiguous() for x in (seq_lens_encoder, seq_lens_decoder, seq_lens_this_time)]
    step = paged.Step(q, k, v, key_cache, value_cache, tables, *lengths, factor, partial(empty, q))
    with torch.no_grad():
        return paged.run(step, paged.plan(step, checked_rows(step)))


def require_sizes(
    q: Any, k: Any, v: Any, key_cache: Any, value_cache: Any, tables: Any, encoder: Any, decoder: Any, this_time: Any
) -> None:
    """A call that comes by a remembered decision; the core turns this into the spec's error."""
    num_tokens, num_heads, head_dim = q.shape
    _, heads, block_size, _ = key_cache.shape
    fits = k.shape == v.shape == (num_tokens, heads, head_dim) and heads > 0 and num_heads % heads == 0
    fits = fits and key_cache.shape == value_cache.shape and key_cache.shape[3] == head_dim > 0 and block_size > 0
    batches = {x.shape[0] for x in (tables, encoder, decoder, this_time) if x.dim()}
    if not fits or tables.dim() != 2 or len(batches) != 1 or any(x.dim() != 1 for x in (encoder, decoder, this_time)):
        raise ValueError(f"sizes do not fit: q {list(q.shape)}, key_cache {list(key_cache.shape)}")


def checked_rows(step: paged.Step) -> list[tuple[int, int]]:
    """(first position, tokens) of each row; the spec's own error where they do not fit."""
    found = paged.inspect(step)
    if found.is_meta:  # launches are recorded, not run: one row in decode and one in prefill stand for all
        return [(4095, 1), (0, 4096)]
    rows = found.tolist()
    if any(broken for *_, broken in rows) or sum(count for _, count, _ in rows) != step.q.shape[0]:
        num_blocks, _, block_size, _ = step.key_cache.shape
        lengths = (x.tolist() for x in (step.seq_lens_encoder, step.seq_lens_decoder, step.seq_lens_this_time))
        row_spans(step.q.shape[0], num_blocks, block_size, step.block_tables.tolist(), *lengths)
    return [(start, count) for start, count, _ in rows]
