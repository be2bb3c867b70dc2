"""paged_attention on the CPU. The caches are written where they are."""

from __future__ import annotations

from typing import Any

from fusionkit_backends.cpu import paddle_ops, runtime
from fusionkit_backends.cpu.flash_attention import default_scale

from fusionkit import policy
from fusionkit.errors import argument_error


def through_paddle(
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
    from paddle import in_dynamic_mode

    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        # Paddle would make a contiguous copy, and the new tokens would be written there.
        if in_dynamic_mode() and not cache.is_contiguous():
            rule, advice = "contiguous, because it is updated in place", "Keep the caches contiguous"
            raise argument_error("paged_attention", name, rule, f"strides {cache.strides}", advice=advice)
    tensors = paddle_ops.inputs(
        q, k, v, key_cache, value_cache, block_tables, seq_lens_encoder, seq_lens_decoder, seq_lens_this_time
    )
    factor = default_scale(q) if scale is None else float(scale)
    return paddle_ops.run("fusionkit_paged_attention", *tensors, factor, window, policy.batch_invariant())[0]


def through_numpy(
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
    caches = key_cache, value_cache
    lengths = seq_lens_encoder, seq_lens_decoder, seq_lens_this_time
    factor = default_scale(q) if scale is None else scale
    choices = factor, window, policy.batch_invariant()
    return runtime.native().paged_attention(q, k, v, *caches, block_tables, *lengths, *choices)
