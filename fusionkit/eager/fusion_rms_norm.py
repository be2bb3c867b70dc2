"""fusion_rms_norm composed of Paddle's own ops."""

from __future__ import annotations

from typing import Any

import paddle

from fusionkit.eager.precision import accumulation_dtype
from fusionkit.eager.shapes import require_shape
from fusionkit.errors import argument_error


def fusion_rms_norm(x: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    require_norm("fusion_rms_norm", x, weight, epsilon)
    return normalise(x.astype(paddle.float32), weight, epsilon).astype(x.dtype)


def require_norm(op: str, x: Any, weight: Any, epsilon: float) -> None:
    require_shape(op, "weight", weight, x.shape[-1:])
    if epsilon < 0:
        raise argument_error(op, "epsilon", "at least 0", epsilon)


def normalise(x: Any, weight: Any, epsilon: float) -> Any:
    """The norm of float32 x, not rounded."""
    wide = x.astype(accumulation_dtype(x))
    rstd = paddle.rsqrt((wide * wide).mean(-1, keepdim=True) + epsilon).astype(paddle.float32)
    return x * rstd * weight.astype(paddle.float32)
