"""fusion_add_rms_norm on Paddle tensors, by this package's Triton kernels: Paddle's fused_rms_norm with a residual has
no gradient."""

from __future__ import annotations

from typing import Any

import paddle
from fusionkit_backends.gpu import triton_support
from paddle.autograd import PyLayer


def _rows(tensor: Any) -> Any:
    return tensor.reshape([-1, tensor.shape[-1]])


class _AddRmsNorm(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, residual: Any, weight: Any, epsilon: float) -> Any:
        from fusionkit_backends.gpu.kernels import rms_norm

        rows = _rows(x)
        y, total = paddle.empty(rows.shape, x.dtype), paddle.empty(rows.shape, residual.dtype)
        rstd = paddle.empty([rows.shape[0]], "float64")
        rms_norm.forward(rows, _rows(residual), weight, epsilon, y, total, rstd)
        ctx.save_for_backward(total, weight, rstd)
        ctx.dtypes, ctx.wants_weight = (x.dtype, residual.dtype), not weight.stop_gradient
        return y.reshape(x.shape), total.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, dy: Any, dtotal: Any) -> Any:
        from fusionkit_backends.gpu.kernels import rms_norm_gradient

        total, weight, rstd = ctx.saved_tensor()
        x_dtype, residual_dtype = ctx.dtypes
        dx = paddle.empty(total.shape, x_dtype)
        dresidual = None if x_dtype == residual_dtype else paddle.empty(total.shape, residual_dtype)
        parts = dweight = None
        if ctx.wants_weight:
            parts = paddle.empty([rms_norm_gradient.num_parts(*total.shape), total.shape[1]], "float32")
            dweight = paddle.empty(weight.shape, weight.dtype)
        rms_norm_gradient.backward(
            _rows(dy), total, _rows(dtotal), weight, rstd, dx, dresidual, parts, dweight
        )  # fmt: skip
        dx, dresidual = (None if g is None else g.reshape(dy.shape) for g in (dx, dresidual))
        return dx, dx.clone() if dresidual is None else dresidual, dweight


def fusion_add_rms_norm(x: Any, residual: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    if x.shape != residual.shape or list(weight.shape) != list(x.shape[-1:]):
        raise ValueError("residual must have x's shape, and weight its last axis")
    if 0 in x.shape:  # no row: nothing to launch, but a gradient for each
        total = x.astype("float32") + residual.astype("float32")
        return (total * weight.astype("float32")).astype(x.dtype), total.astype(residual.dtype)
    triton_support.enable()
    return _AddRmsNorm.apply(x, residual, weight, float(epsilon))
