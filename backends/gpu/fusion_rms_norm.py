"""fusion_rms_norm by paddle.incubate.nn.functional.fused_rms_norm_ext(x, scale, epsilon) -> y, invvar."""

from __future__ import annotations

from typing import Any


def fusion_rms_norm(x: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    from paddle.incubate.nn import functional as F

    from fusionkit.adapters import norm

    return norm.in_weight_dtype(lambda *xw: F.fused_rms_norm_ext(*xw, epsilon=float(epsilon))[0], x, weight)
