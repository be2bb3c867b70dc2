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
    key_scales: Any = None,
    value_scales: Any = None,
) -> Any:
    lengths = seq_lens_encoder, seq_lens_decoder, seq_lens_this_time
    choices = default_scale(q) if scale is None else float(scale), window, policy.batch_invariant()
    if key_scales is None:
        _require_contiguous(key_cache=key_cache, value_cache=value_cache)
        tensors = paddle_ops.inputs(q, k, v, key_cache, value_cache, block_tables, *lengths)
        return paddle_ops.run("fusionkit_paged_attention", *tensors, *choices)[0]
    _require_contiguous(key_cache=key_cache, value_cache=value_cache, key_scales=key_scales, value_scales=value_scales)
    tensors = paddle_ops.inputs(q, k, v, key_cache, value_cache, block_tables, *lengths, key_scales, value_scales)
    return paddle_ops.run("fusionkit_paged_attention_int8", *tensors, *choices)[0]


def _require_contiguous(**written: Any) -> None:
    """Paddle would make a contiguous copy of another one, and the new tokens would be written there."""
    from paddle import in_dynamic_mode

    for name, cache in written.items():
        if in_dynamic_mode() and not cache.is_contiguous():
            rule, advice = "contiguous, because it is updated in place", "Keep the caches contiguous"
            raise argument_error("paged_attention", name, rule, f"strides {cache.strides}", advice=advice)


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
    key_scales: Any = None,
    value_scales: Any = None,
) -> Any:
    caches = key_cache, value_cache
    lengths = seq_lens_encoder, seq_lens_decoder, seq_lens_this_time
    factor = default_scale(q) if scale is None else scale
    choices = factor, window, policy.batch_invariant(), key_scales, value_scales
    return runtime.native().paged_attention(q, k, v, *caches, block_tables, *lengths, *choices)
