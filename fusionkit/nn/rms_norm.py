"""Root-mean-square normalisation with the residual stream in hand."""

from __future__ import annotations

from typing import Any

import paddle

import fusionkit as fk


class RMSNorm(paddle.nn.Layer):  # type: ignore[misc]
    """Normalises x; with a residual stream it adds x to the stream first and normalises the sum, in one pass.

        y = norm(x)                       y = x / sqrt(mean(x^2) + epsilon) * weight
        y, residual = norm(x, residual)   residual = x + residual, and y of that sum

    A pre-norm block is two calls: `y, residual = norm(x, residual)`, then `x = block(y)`. The sum waits for the
    next norm. Where the stream begins, the block's input is the stream: `y, residual = norm(x), x`.

    Args:
        hidden_size: of the last axis.
        epsilon: added to the mean square before the root.
    """

    def __init__(self, hidden_size: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = self.create_parameter(
            [hidden_size], dtype="float32", default_initializer=paddle.nn.initializer.Constant(1.0)
        )

    def forward(self, x: Any, residual: Any = None) -> Any:
        """y, or with a residual the tuple (y, residual); all are [..., hidden_size]."""
        if residual is None:
            return fk.fusion_rms_norm(x, self.weight, epsilon=self.epsilon)
        y, residual = fk.fusion_add_rms_norm(x, residual, self.weight, epsilon=self.epsilon)
        return y, residual
