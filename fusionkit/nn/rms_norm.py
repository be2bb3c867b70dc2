"""Root-mean-square normalisation with the residual stream in hand."""

from __future__ import annotations

from typing import Any

import paddle

import fusionkit as fk


class RMSNorm(paddle.nn.Layer):  # type: ignore[misc]
    """Adds a block's output to the residual stream and normalises the sum, in one pass.

        residual = x + residual,  y = residual / sqrt(mean(residual^2) + epsilon) * weight

    A pre-norm block is two calls: `y, residual = norm(x, residual)`, then `x = block(y)`. The sum waits for the
    next norm.

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

    def forward(self, x: Any, residual: Any = None) -> tuple[Any, Any]:
        """(y, residual), both [..., hidden_size]; x alone is the residual stream when there is none yet."""
        if residual is None:
            return fk.fusion_rms_norm(x, self.weight, epsilon=self.epsilon), x
        y, residual = fk.fusion_add_rms_norm(x, residual, self.weight, epsilon=self.epsilon)
        return y, residual
