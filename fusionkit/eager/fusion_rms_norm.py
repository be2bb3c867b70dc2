"""fusion_rms_norm composed of Paddle's own ops."""

from __future__ import annotations

import math
from typing import Any

import paddle

from fusionkit.eager.precision import accumulation_dtype
from fusionkit.eager.shapes import require_shape
from fusionkit.errors import argument_error

SMALLEST, LARGEST = 2.0**-126, 2.0**127  # of float32, to its last bit


def fusion_rms_norm(x: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    require_norm("fusion_rms_norm", x, weight, epsilon)
    return normalise(x.astype(paddle.float32), weight, epsilon).astype(x.dtype)


def require_norm(op: str, x: Any, weight: Any, epsilon: float) -> None:
    require_shape(op, "weight", weight, x.shape[-1:])
    if epsilon < 0:
        raise argument_error(op, "epsilon", "at least 0", epsilon)


def normalise(x: Any, weight: Any, epsilon: float) -> Any:
    """The norm of float32 x in float32, rounded once on the host.

    x is divided by its largest element, so that its squares stay in float32 where there is no float64: the norm of
    x / s with epsilon / s^2 is the norm of x, and has its gradient with s held fixed.
    """
    wide = x.astype(accumulation_dtype(x))
    scale = paddle.clip(wide.abs().max(-1, keepdim=True), max(math.sqrt(epsilon), SMALLEST), LARGEST).detach()
    scaled = wide / scale
    rstd = paddle.rsqrt((scaled * scaled).mean(-1, keepdim=True) + epsilon / scale / scale)
    return (scaled * rstd * weight.astype(wide.dtype)).astype(paddle.float32)
