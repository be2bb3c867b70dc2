"""The linear layer."""

from __future__ import annotations

from typing import Any

import paddle

import fusionkit as fk


class Linear(paddle.nn.Layer):  # type: ignore[misc]
    """y = x @ weight + bias, in x's dtype, with a float32 weight of [in_features, out_features].

    Args:
        in_features, out_features: the last axis of x and of y.
        bias: whether a bias is added.
        initializer_range: the weight starts normal with this standard deviation, the bias at zero.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, initializer_range: float = 0.02
    ) -> None:
        super().__init__()
        normal = paddle.nn.initializer.Normal(std=initializer_range)
        self.weight = self.create_parameter([in_features, out_features], dtype="float32", default_initializer=normal)
        self.bias = self.create_parameter([out_features], dtype="float32", is_bias=True) if bias else None

    def forward(self, x: Any) -> Any:
        """[..., out_features], dtype of x."""
        return fk.fused_linear(x, self.weight, self.bias)
