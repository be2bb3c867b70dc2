"""fused_linear by paddle.incubate.nn.functional.fused_linear: the bias is added in the product's epilogue."""

from __future__ import annotations

from typing import Any


def fused_linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """Float32 parameters beside 16-bit x are rounded to x's dtype; their gradients return in float32."""
    from paddle.incubate.nn import functional as F

    rounded_bias = None if bias is None else bias.astype(x.dtype)
    return F.fused_linear(x, weight.astype(x.dtype), rounded_bias, transpose_weight=False)
