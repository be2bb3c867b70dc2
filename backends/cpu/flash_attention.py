"""flash_attention on the CPU."""

from __future__ import annotations

import math
from typing import Any

from fusionkit_backends.cpu import paddle_ops, runtime


def default_scale(q: Any) -> float:
    return 1.0 / math.sqrt(q.shape[-1])


def through_paddle(
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
    q, k, v, attn_mask, startend_row_indices = paddle_ops.inputs(q, k, v, attn_mask, startend_row_indices)
    factor = default_scale(q) if scale is None else float(scale)
    out, lse = paddle_ops.run("fusionkit_flash_attention", q, k, v, attn_mask, startend_row_indices, causal, factor)
    return (out, lse) if return_lse else out


def through_numpy(
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
    factor = default_scale(q) if scale is None else scale
    out, lse = runtime.native().flash_attention(q, k, v, causal, attn_mask, startend_row_indices, factor)
    return (out, lse) if return_lse else out


def vjp(
    grad_outputs: Any,
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    attn_mask: Any = None,
    startend_row_indices: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> dict[str, Any]:
    native = runtime.native()
    factor = default_scale(q) if scale is None else scale
    mask = causal, attn_mask, startend_row_indices
    dout, dlse = grad_outputs if return_lse else (grad_outputs, None)
    out, lse = native.flash_attention(q, k, v, *mask, factor)
    dq, dk, dv = native.flash_attention_grad(q, k, v, out, lse, *mask, factor, dout, dlse)
    return {"q": dq, "k": dk, "v": dv}
