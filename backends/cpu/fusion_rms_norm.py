"""fusion_rms_norm on the CPU."""

from __future__ import annotations

from typing import Any

from fusionkit_backends.cpu import paddle_ops, runtime


def through_paddle(x: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    x, weight = paddle_ops.inputs(x, weight)
    y, _ = paddle_ops.run("fusionkit_fusion_rms_norm", x, weight, float(epsilon))
    return y


def through_numpy(x: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    y, _ = runtime.native().rms_norm(x, weight, epsilon)
    return y


def vjp(grad_outputs: Any, x: Any, weight: Any, *, epsilon: float = 1e-5) -> dict[str, Any]:
    native = runtime.native()
    _, rstd = native.rms_norm(x, weight, epsilon, want_rstd=True)
    dx, dweight = native.rms_norm_grad(x, weight, rstd, grad_outputs)
    return {"x": dx, "weight": dweight}
