"""fusion_rms_norm by rms_norm_npu(x, gamma; epsilon) -> y in gamma's dtype, rstd; its dgamma is always float32."""

from __future__ import annotations

from typing import Any

from fusionkit.frameworks import custom_device


def fusion_rms_norm(x: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    from fusionkit.adapters import norm, products

    def run(x: Any, weight: Any) -> Any:
        return custom_device.run("rms_norm_npu", (x, products.with_own_gradient(weight)), float(epsilon))[0]

    return norm.in_weight_dtype(run, x, weight)
