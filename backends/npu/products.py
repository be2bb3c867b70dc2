"""What the collective ops' kernels compute without the vendor's fused products."""

from __future__ import annotations

from typing import Any


def operand(weight: Any, x: Any) -> Any:
    """A float32 master weight, rounded to x's dtype for the product."""
    return weight if weight.dtype == x.dtype else weight.astype(x.dtype)


def weight_gradient(x: Any, dy: Any, dtype: Any) -> Any:
    """x^T @ dy over all rows. One in float32 comes from a float32 product: 16 bits would round it."""
    import paddle

    x, dy = (t.reshape([-1, t.shape[-1]]).astype(dtype) for t in (x, dy))
    return paddle.matmul(x, dy, transpose_x=True)
