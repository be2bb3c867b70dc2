"""swiglu composed of Paddle's own ops."""

from __future__ import annotations

from typing import Any

import paddle
from paddle.nn import functional as F

from fusionkit.eager.precision import accumulation_dtype
from fusionkit.eager.shapes import require_shape

# Below it sigmoid(g) is exp(g) to float32's last bit. No float32 itself: there both factors would have a gradient.
DEEP = -60.1


def swiglu(gate: Any, up: Any) -> Any:
    """Not F.silu: its gradient on the CPU is NaN for gates below -88 (Paddle 3.3.1).

    sigmoid(g) leaves float32 below -88 although its product with `up` may not. It is multiplied in three factors, the
    last two of which are 1 for gates above DEEP.
    """
    require_shape("swiglu", "up", up, gate.shape)
    dtype = accumulation_dtype(gate)
    wide = gate.astype(dtype)
    rest = paddle.exp(paddle.clip(wide - DEEP, max=0.0) * 0.5)
    y = up.astype(dtype) * F.sigmoid(paddle.clip(wide, min=DEEP)) * rest * wide * rest
    return y.astype(gate.dtype)
