"""The calls of attention that are compiled ahead of time: each kind of mask, and head_dims of one, two and four blocks.

float16 and bfloat16 have the same programs but for the instruction's name: float16 is compiled once.
"""

from __future__ import annotations

import torch

from tests.gpu.launches import empty

LENGTH = 2048


def qkv(dtype, head_dim, heads=40):
    return {name: empty(1, LENGTH, heads, head_dim, dtype=dtype) for name in "qkv"}


def bounds(columns):
    return torch.empty((1, 1, LENGTH, columns), dtype=torch.int32, device="meta")


def flash_attention(dtype):
    yield {**qkv(dtype, 128), "causal": True}
    if dtype == "float16":
        return
    mask = empty(1, 1, LENGTH, LENGTH, dtype="float32", grad=False)
    yield {**qkv(dtype, 128), "attn_mask": mask, "causal": True}
    if dtype == "float32":
        yield {**qkv(dtype, 256, 20), "causal": True}
        return
    yield {**qkv(dtype, 64, 80), "causal": True, "return_lse": True}
    yield {**qkv(dtype, 80, 64)}
    yield {**qkv(dtype, 256, 20), "causal": True}
    yield {**qkv(dtype, 128), "startend_row_indices": bounds(1), "causal": True}
    yield {**qkv(dtype, 128), "startend_row_indices": bounds(4)}
    yield {**qkv(dtype, 64, 80), "attn_mask": empty(1, 1, LENGTH, LENGTH, dtype=torch.bool, grad=False)}
    yield {**qkv(dtype, 256, 20), "attn_mask": mask}


def paged_attention(dtype):
    def made(heads, kv_heads, head_dim):
        cache = {name: empty(4096, kv_heads, 64, head_dim, dtype=dtype, grad=False) for name in CACHES}
        tokens = {
            name: empty(4097, n, head_dim, dtype=dtype, grad=False)
            for name, n in zip("qkv", (heads, kv_heads, kv_heads), strict=True)
        }
        lengths = {name: torch.empty(8, dtype=torch.int32, device="meta") for name in LENGTHS}
        return {**tokens, **cache, **lengths, "block_tables": torch.empty((8, 64), dtype=torch.int32, device="meta")}

    yield made(40, 8, 128)
    if dtype == "bfloat16":
        yield made(40, 40, 256)


CACHES = ("key_cache", "value_cache")
LENGTHS = ("seq_lens_encoder", "seq_lens_decoder", "seq_lens_this_time")
