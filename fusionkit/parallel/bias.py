"""The bias of a layer whose product is followed by a collective: added once, after it."""

from __future__ import annotations

from typing import Any

import paddle

import fusionkit as fk


def with_bias(y: Any, bias: Any) -> Any:
    """y + bias in y's dtype with one rounding; in 16 bits through float32, as the bias's gradient is a long sum."""
    if bias is None:
        return y
    if y.dtype == bias.dtype == paddle.float32:
        return y + bias
    return (y.astype("float32") + bias.astype("float32")).astype(y.dtype)


def product_with_bias(layer: Any, x: Any) -> Any:
    """x @ weight + bias, in one pass and with one rounding where the layer fuses them."""
    if layer.fuse_matmul_bias:
        return fk.fused_linear(x, layer.weight, layer.bias)
    return with_bias(fk.fused_linear(x, layer.weight), layer.bias)
