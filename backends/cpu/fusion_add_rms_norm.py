"""fusion_add_rms_norm on the CPU."""

from __future__ import annotations

from typing import Any

from fusionkit_backends.cpu import paddle_ops, runtime


def through_paddle(x: Any, residual: Any, weight: Any, *, epsilon: float = 1e-5) -> tuple[Any, Any]:
    x, residual, weight = paddle_ops.inputs(x, residual, weight)
    y, residual_out, _ = paddle_ops.run("fusionkit_fusion_add_rms_norm", x, residual, weight, float(epsilon))
    return y, residual_out


def through_numpy(x: Any, residual: Any, weight: Any, *, epsilon: float = 1e-5) -> tuple[Any, Any]:
    y, residual_out, _ = runtime.native().add_rms_norm(x, residual, weight, epsilon)
    return y, residual_out


def vjp(grad_outputs: Any, x: Any, residual: Any, weight: Any, *, epsilon: float = 1e-5) -> dict[str, Any]:
    native = runtime.native()
    dy, dresidual_out = grad_outputs
    _, residual_out, rstd = native.add_rms_norm(x, residual, weight, epsilon, want_rstd=True)
    dx, dresidual, dweight = native.add_rms_norm_grad(residual_out, weight, rstd, dy, dresidual_out)
    return {"x": dx, "residual": dresidual, "weight": dweight}
