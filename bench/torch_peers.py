"""The timed calls composed of PyTorch's own functions, each in the layouts that its users choose from.

A peer takes the op's arguments as tensors and returns {variant: (call, inputs that get gradients)}.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fusionkit_bench.contestants import Contestants
from fusionkit_bench.subject import FORWARD, TRAINING, Subject

from fusionkit.frameworks.numpy import DTYPES
from fusionkit.ops.flash_attention import hidden_by_rows

LIMIT_S = 10.0

Variants = dict[str, tuple[Callable[[], Any], list[Any]]]


def contestants(subject: Subject, made: dict[str, Any], suffix: str) -> Contestants:
    """None for an op that PEERS does not know: a new op needs no peer. None that takes longer than LIMIT_S."""
    if subject.op_name not in PEERS:
        return {}
    dims = subject.dims(made)
    rate = product_rate(subject.dtype)
    directions = [way for way in subject.directions if subject.cost(dims, way).flops / rate <= LIMIT_S]
    tensors = {name: to_torch(value) for name, value in made.items()}
    found: Contestants = {}
    for variant, (call, wanted) in PEERS[subject.op_name](**tensors).items():
        name = f"torch{variant}{suffix}"
        if FORWARD in directions:
            found[name, FORWARD] = without_gradients(call)
        if TRAINING in directions:
            found[name, TRAINING] = with_gradients(call, wanted)
    return found


@cache
def product_rate(dtype: str) -> float:
    """FLOP/s of a small product. Of bfloat16 it is low on a processor without instructions for that."""
    rows, size = 128, 1024
    x, weight = (torch.ones(*shape, dtype=getattr(torch, dtype)) for shape in ((rows, size), (size, size)))
    seconds = min(timeit.repeat(lambda: x @ weight, number=1, repeat=3))
    return 2.0 * rows * size * size / seconds


def to_torch(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def without_gradients(call: Callable[[], Any]) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad():
            return call()

    return forward


def with_gradients(call: Callable[[], Any], wanted: list[Any]) -> Callable[[], object]:
    leaves = [tensor.requires_grad_() for tensor in wanted]
    outputs = call()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [torch.ones_like(output) for output in outputs]

    def both() -> object:
        made = call()
        return torch.autograd.grad(made if isinstance(made, tuple) else (made,), leaves, grads)

    return both


def fusion_rms_norm(x: Any, weight: Any) -> Variants:
    return {"": (lambda: F.rms_norm(x, weight.shape, weight, 1e-5), [x, weight])}


def fusion_add_rms_norm(x: Any, residual: Any, weight: Any) -> Variants:
    def call() -> Any:
        total = x + residual
        return F.rms_norm(total, weight.shape, weight, 1e-5), total

    return {"": (call, [x, residual, weight])}


def fusion_rope(q: Any, k: Any, cos: Any, sin: Any) -> Variants:
    """cos and sin are widened to head_dim beforehand, as model code keeps them."""
    rows = slice(0, q.shape[1])
    cos, sin = (torch.cat([table[rows], table[rows]], -1)[:, None].to(q.dtype) for table in (cos, sin))

    def rotated(x: Any) -> Any:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    return {"": (lambda: (rotated(q), rotated(k)), [q, k])}


def swiglu(gate: Any, up: Any) -> Variants:
    return {"": (lambda: F.silu(gate) * up, [gate, up])}


def fused_linear(x: Any, weight: Any, bias: Any) -> Variants:
    if weight.dtype != x.dtype:
        return {"": (lambda: x @ weight.to(x.dtype), [x, weight])}
    return {"": (lambda: x @ weight, [x, weight])}


def fused_linear_cross_entropy(x: Any, weight: Any, labels: Any, ignore_index: int) -> Variants:
    def call() -> Any:
        logits = (x @ weight.to(x.dtype)).float()
        return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")

    return {"": (call, [x, weight])}


def flash_attention(
    q: Any, k: Any, v: Any, causal: bool = False, attn_mask: Any = None, startend_row_indices: Any = None
) -> Variants:
    """Bottom-right causal with different lengths, and documents, go in as a dense bool mask made beforehand."""
    q_len, kv_len = q.shape[1], k.shape[1]
    mask = attn_mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    if startend_row_indices is not None:
        mask = ~torch.from_numpy(hidden_by_rows(startend_row_indices.numpy(), causal, q_len))
    if causal and (mask is not None or q_len != kv_len):
        triangle = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
        mask, causal = triangle if mask is None else mask & triangle, False

    def attend(q: Any, k: Any, v: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])

    heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    return {
        " [B,H,S,D]": (lambda: attend(*heads_first), heads_first),
        " [B,S,H,D]": (lambda: attend(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2), [q, k, v]),
    }


def paged_attention(
    q: Any,
    k: Any,
    v: Any,
    key_cache: Any,
    value_cache: Any,
    block_tables: Any,
    key_scales: Any = None,
    value_scales: Any = None,
    **lengths: Any,
) -> Variants:
    """Over a contiguous cache gathered beforehand, full with this token: PyTorch has no paged one, and none of int8.

    Codes become q's dtype beforehand, too.
    """
    if key_scales is not None:
        key_cache = (key_cache * key_scales[..., None]).to(q.dtype)
        value_cache = (value_cache * value_scales[..., None]).to(q.dtype)
    heads, head_dim = key_cache.shape[1], key_cache.shape[3]
    keys, values = (
        cache[block_tables.long()].transpose(1, 2).reshape(len(block_tables), heads, -1, head_dim).contiguous()
        for cache in (key_cache, value_cache)
    )
    keys[:, :, -1], values[:, :, -1] = k, v
    query = q[:, :, None]
    gqa = q.shape[1] != heads
    return {"": (lambda: F.scaled_dot_product_attention(query, keys, values, enable_gqa=gqa), [])}


def fused_adamw(param: Any, grad: Any, learning_rate: float, **others: Any) -> Variants:
    """torch.optim's fused step, on one parameter that holds its gradient; float32 gradients alone."""
    held = torch.nn.Parameter(param)
    held.grad = grad.float()
    optimizer = torch.optim.AdamW([held], learning_rate, weight_decay=0.01, fused=True)
    return {"": (lambda: optimizer.step(), [])}


PEERS: dict[str, Callable[..., Variants]] = {
    peer.__name__: peer
    for peer in (
        fusion_rms_norm,
        fusion_add_rms_norm,
        fusion_rope,
        swiglu,
        fused_linear,
        fused_linear_cross_entropy,
        flash_attention,
        paged_attention,
        fused_adamw,
    )
}
