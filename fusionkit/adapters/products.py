"""A weight in a product whose arithmetic is the activations', and its gradient in the weight's own dtype."""

from __future__ import annotations

from typing import Any

import paddle


def operand(weight: Any, x: Any) -> Any:
    """weight [in_features, out_features] in x's dtype: a float32 master weight is rounded for the product."""
    return weight if weight.dtype == x.dtype else weight.astype(x.dtype)


def weight_gradient(x: Any, dy: Any, dtype: Any) -> Any:
    """x^T @ dy over all rows: [in_features, out_features] of `dtype`, the weight's.

    A float32 gradient comes from a float32 product: 16 bits would round it.

    Args:
        x: [..., in_features]. dy: [..., out_features], as many rows.
    """
    x, dy = (t.reshape([-1, t.shape[-1]]).astype(dtype) for t in (x, dy))
    return paddle.matmul(x, dy, transpose_x=True)


def with_own_gradient(weight: Any) -> Any:
    """The weight for a device's op whose gradient of it is always float32: autograd rounds it to the weight's dtype."""
    return weight if weight.dtype == paddle.float32 else weight.astype(paddle.float32).astype(weight.dtype)
