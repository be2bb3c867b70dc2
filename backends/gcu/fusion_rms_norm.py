"""fusion_rms_norm by rms_norm_gcu(x, weight; epsilon) -> out."""

from __future__ import annotations

from typing import Any

from fusionkit.frameworks import custom_device


def fusion_rms_norm(x: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    from fusionkit.adapters import norm

    return norm.in_weight_dtype(lambda *xw: custom_device.run("rms_norm_gcu", xw, float(epsilon))[0], x, weight)
