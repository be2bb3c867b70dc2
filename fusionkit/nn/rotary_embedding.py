"""Rotary position embedding with its tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

import fusionkit as fk


class RotaryEmbedding(paddle.nn.Layer):  # type: ignore[misc]
    """Rotates each pair of a head's elements by position * frequency, and scales both by the amplitude.

        frequency = theta^(-2 i / head_dim), i the pair's number

    The tables of cosines and sines are constants. They stay float32 when a model is cast (`bfloat16()`,
    `to(dtype="float16")`, `paddle.amp.decorate`): rounded to 16 bits they would turn by other angles.

    Args:
        head_dim: even.
        max_position: rows of the tables; positions must be below.
        theta: the base of the angles.
        interleaved: False pairs element i with i + head_dim / 2 (Llama), True neighbours.
        frequencies: [head_dim / 2], the angle of each pair from one position to the next; None: by theta.
        amplitude: factor of cosines and sines.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2.2.
    """

    def __init__(
        self,
        head_dim: int,
        max_position: int,
        theta: float = 10000.0,
        interleaved: bool = False,
        frequencies: Any = None,
        amplitude: float = 1.0,
    ) -> None:
        super().__init__()
        self.interleaved = interleaved
        if frequencies is None:
            frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
        angles = np.outer(np.arange(max_position), frequencies)  # float64: position 4095 needs 12 of float32's 24 bits
        for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            self.register_buffer(name, paddle.to_tensor((amplitude * table).astype(np.float32)), persistable=False)

    def _apply(self, func: Any, device: Any, dtype: Any, blocking: Any, include_sublayers: bool = True) -> None:
        """Every cast of Paddle 3.3.1 comes through here. The tables follow to another device, not to another dtype."""
        super()._apply(func, device, None, blocking, include_sublayers)

    def forward(self, q: Any, k: Any, position_ids: Any = None) -> tuple[Any, Any]:
        """(q, k), [batch_size, seq_len, heads, head_dim] each; position_ids [batch_size, seq_len], default 0, 1, ..."""
        q, k = fk.fusion_rope(q, k, self.cos, self.sin, position_ids=position_ids, interleaved=self.interleaved)
        return q, k
