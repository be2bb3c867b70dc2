"""flash_attention for PyTorch's tensors: this package's kernels under autograd, or the framework's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from fusionkit_backends.gpu import attention_choice
from fusionkit_backends.gpu.kernels import attention
from fusionkit_backends.gpu.kernels.launch import is_recording
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel


class Attention(torch.autograd.Function):
    """(q, k, v, attn_mask, startend_row_indices, causal, scale, tiles) -> out, lse."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, mask: Any, bounds: Any, *settings: Any) -> tuple[Any, Any]:
        q, k, v = map(dense_last, (q, k, v))
        bounds = None if bounds is None else bounds.contiguous()
        out, lse, parts = attend(q, k, v, mask, bounds, *settings)
        ctx.save_for_backward(q, k, v, mask, bounds, out, lse, parts)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dout: Any, dlse: Any) -> tuple[Any, ...]:
        *inputs, out, lse, parts = ctx.saved_tensors
        return (*gradients(*inputs, (out, lse, parts), dout, dlse, *ctx.settings), *[None] * 5)


def attend(
    q: Any, k: Any, v: Any, mask: Any, bounds: Any, causal: bool, scale: float, tiles: Any
) -> tuple[Any, Any, Any]:
    if q.numel() == 0 or k.shape[1] == 0:
        batch_size, q_len, num_heads, _ = q.shape
        lse = q.new_full((batch_size, num_heads, q_len), float("-inf"), dtype=torch.float32)
        return q.new_zeros(q.shape), lse, lse
    return attention.forward(attention.Problem(q, k, v, causal, scale, partial(empty, q), mask, bounds, tiles))


def gradients(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    bounds: Any,
    results: tuple[Any, Any, Any],
    dout: Any,
    dlse: Any,
    causal: bool,
    scale: float,
    tiles: Any,
) -> tuple[Any, Any, Any]:
    if q.numel() == 0 or k.shape[1] == 0:
        return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    dout = torch.zeros_like(results[0]) if dout is None else dense_last(dout)
    problem = attention.Problem(q, k, v, causal, scale, partial(empty, q), mask, bounds, tiles)
    return attention.backward(problem, results, dout, None if dlse is None else dlse.contiguous())


def empty(like: Any, shape: tuple[int, ...], dtype: str) -> Any:
    return torch.empty(shape, dtype=like.dtype if dtype == "q" else getattr(torch, dtype), device=like.device)


def dense_last(tensor: Any) -> Any:
    """The tensor, or a copy where its last axis is strided, or rows lie so far apart that 128 of them pass 2^31."""
    return tensor if tensor.stride(-1) == 1 and tensor.stride(1) < 2**24 else tensor.contiguous()


def flash_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    attn_mask: Any = None,
    startend_row_indices: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    require_sizes(q, k, v, causal, attn_mask, startend_row_indices)
    masks = attn_mask, startend_row_indices
    plain = attention_choice.is_plain(q, k, causal, masks, scale, return_lse)
    if attention_choice.is_for_the_framework(q, plain):
        attention_choice.FRAMEWORKS.add()
        return frameworks_own(q, k, v, causal and q.shape[1] != 1)
    if not is_recording():  # warmup's calls compute nothing
        attention_choice.OURS.add()
    out, lse = own(q, k, v, causal, attn_mask, startend_row_indices, scale)
    return (out, lse) if return_lse else out


def require_sizes(q: Any, k: Any, v: Any, causal: bool, mask: Any, bounds: Any) -> None:
    """A call that comes by a remembered decision; the core turns this into the spec's error."""
    batch_size, q_len, num_heads, head_dim = q.shape
    _, kv_len, heads, _ = k.shape
    fits = k.shape == v.shape == (batch_size, kv_len, heads, head_dim) and heads > 0 and num_heads % heads == 0
    if mask is not None:
        wide = mask.dim() == 4 and mask.shape[0] in (1, batch_size) and mask.shape[1] in (1, num_heads)
        fits = fits and wide and mask.shape[2] in (1, q_len) and mask.shape[3] == kv_len and bounds is None
    if bounds is not None:
        columns = (1, 2) if causal else (2, 4)
        fits = fits and bounds.dim() == 4 and bounds.shape[0] == batch_size and bounds.shape[1] in (1, heads)
        fits = fits and q_len == kv_len == bounds.shape[2] and bounds.shape[3] in columns
    if not fits or head_dim == 0:
        raise ValueError(f"sizes do not fit: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}")


def own(
    q: Any,
    k: Any,
    v: Any,
    causal: bool = False,
    mask: Any = None,
    bounds: Any = None,
    scale: float | None = None,
    tiles: Callable[..., Any] = attention.attention_tiles.choose,
) -> tuple[Any, Any]:
    """This package's kernels whatever the call: (out, lse)."""
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return Attention.apply(q, k, v, mask, bounds, bool(causal), factor, tiles)  # type: ignore[no-any-return,no-untyped-call]


# The first that takes a call runs it. Hopper's tensor cores are reached by cuDNN, not by the FlashAttention 2 in torch.
HOPPER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
AMPERE = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def frameworks_own(q: Any, k: Any, v: Any, causal: bool) -> Any:
    grouped = q.shape[2] != k.shape[2]
    q, k, v = map(dense_last, (q, k, v))  # the kernels behind it refuse a strided last axis
    with sdpa_kernel(_preferred(q.device.index), set_priority=True):
        out = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal, enable_gqa=grouped
        )
    return out.transpose(1, 2)


@cache
def _preferred(device: int) -> list[SDPBackend]:
    return HOPPER if torch.cuda.get_device_capability(device) >= (9, 0) else AMPERE
