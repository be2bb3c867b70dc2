"""fusion_rms_norm by paddle_xpu_nn.xpu_rms_norm(x, weight, epsilon), whose first result is y."""

from __future__ import annotations

from typing import Any


def fusion_rms_norm(x: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    import paddle_xpu_nn

    from fusionkit.adapters import norm

    return norm.in_weight_dtype(lambda *xw: paddle_xpu_nn.xpu_rms_norm(*xw, float(epsilon))[0], x, weight)
