"""One new token a row over a paged cache, beside the card's copy rate and attention over a cache without pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from fusionkit_backends.gpu.autograd.paged_attention import paged_attention
from fusionkit_backends.gpu.benchmark.clock import measure
from fusionkit_backends.gpu.benchmark.contestants import FORWARD, copy_of, without_gradients
from fusionkit_backends.gpu.benchmark.rows import Row, rated
from fusionkit_backends.gpu.benchmark.setting import Setting

from fusionkit.ops.paged_attention import cost

PIECE, COPY = "decode", "copy rate"


def run(setting: Setting) -> Iterator[Row]:
    block = 4 if setting.dry_run else 64
    length = setting.lengths[0] * 2
    for batch in (1, 2) if setting.dry_run else (1, 8, 64):
        for kv_heads in (setting.heads, max(1, setting.heads // 5)):
            yield from of_step(setting, batch, length, kv_heads, block)


def of_step(setting: Setting, batch: int, length: int, kv_heads: int, block: int) -> Iterator[Row]:
    made = step(setting, batch, length, kv_heads, block)
    keys, values = (unpaged(made[name], made["block_tables"]) for name in ("key_cache", "value_cache"))
    query, grouped = made["q"][:, :, None], kv_heads != setting.heads
    contestants = {
        "fusionkit": without_gradients(lambda: paged_attention(**made)),
        "SDPA, cache without pages": without_gradients(
            lambda: F.scaled_dot_product_attention(query, keys, values, enable_gqa=grouped)
        ),
    }
    dims = {"batch_size": batch, "num_tokens": batch, "head_dim": setting.head_dim, "num_heads": setting.heads}
    dims |= {"num_key_value_heads": kv_heads, "max_blocks": length // block, "block_size": block}
    moved = cost(dims, setting.dtype.itemsize, False)
    num_bytes = moved.bytes_read + moved.bytes_written
    outcomes = measure({**contestants, COPY: copy_of(num_bytes, setting.device)}, setting.num_rounds)
    yield from rated(
        PIECE, f"B{batch}-S{length}-H{setting.heads}:{kv_heads}", FORWARD, outcomes, COPY, num_bytes, num_bytes
    )


def step(setting: Setting, batch: int, length: int, kv_heads: int, block: int) -> dict[str, Any]:
    blocks = length // block
    cache = (batch * blocks, kv_heads, block, setting.head_dim)
    lengths = torch.full((batch,), length - 1, dtype=torch.int32, device=setting.device)
    return {
        "q": setting.randn(batch, setting.heads, setting.head_dim),
        "k": setting.randn(batch, kv_heads, setting.head_dim),
        "v": setting.randn(batch, kv_heads, setting.head_dim),
        "key_cache": setting.randn(*cache),
        "value_cache": setting.randn(*cache),
        "block_tables": torch.randperm(batch * blocks, device=setting.device).to(torch.int32).reshape(batch, blocks),
        "seq_lens_encoder": torch.zeros_like(lengths),
        "seq_lens_decoder": lengths,
        "seq_lens_this_time": torch.ones_like(lengths),
    }


def unpaged(cache: Any, tables: Any) -> Any:
    """[batch, heads, length, head_dim]"""
    found = cache[tables.long()].transpose(1, 2)
    return found.reshape(found.shape[0], found.shape[1], -1, found.shape[4]).contiguous()
