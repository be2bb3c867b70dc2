"""fusion_add_rms_norm composed of Paddle's own ops."""

from __future__ import annotations

from typing import Any

import paddle

from fusionkit.eager.fusion_rms_norm import normalise, require_norm
from fusionkit.eager.precision import rounded_to
from fusionkit.eager.shapes import require_shape


def fusion_add_rms_norm(x: Any, residual: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    require_norm("fusion_add_rms_norm", x, weight, epsilon)
    require_shape("fusion_add_rms_norm", "residual", residual, x.shape)
    total = x.astype(paddle.float32) + residual.astype(paddle.float32)
    y = normalise(rounded_to(residual.dtype, total), weight, epsilon)
    return y.astype(x.dtype), total.astype(residual.dtype)
