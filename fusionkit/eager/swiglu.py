"""swiglu composed of Paddle's own ops."""

from __future__ import annotations

from typing import Any

import paddle
from paddle.nn import functional as F

from fusionkit.eager.shapes import require_shape


def swiglu(gate: Any, up: Any) -> Any:
    """Not F.silu: its gradient on the CPU is NaN for gates below -88 (Paddle 3.3.1)."""
    require_shape("swiglu", "up", up, gate.shape)
    wide = gate.astype(paddle.float32)
    return (wide * F.sigmoid(wide) * up.astype(paddle.float32)).astype(gate.dtype)
