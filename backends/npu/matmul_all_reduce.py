"""matmul_all_reduce by fused_mm_allreduce. Its gradients have no collective: two products of the device's own."""

from __future__ import annotations

from typing import Any

import paddle
from fusionkit_backends.npu import communication
from fusionkit_backends.npu.products import operand, weight_gradient
from paddle.autograd import PyLayer

from fusionkit.eager.fused_linear import fused_linear
from fusionkit.eager.matmul_all_reduce import Done

OP = "matmul_all_reduce"


def matmul_all_reduce(x: Any, weight: Any, *, group: Any, defer: bool = False) -> Any:
    """The device runs behind the host, so a handle has nothing to wait for; what comes next on the stream starts after
    the sum, and no end of it hides."""
    y = _summed(x, weight, group)
    return Done(y) if defer else y


def _summed(x: Any, weight: Any, group: Any) -> Any:
    if 0 in x.shape:  # no row: nothing to launch, nothing to send
        return fused_linear(x, weight)
    communication.require_group(OP, group)
    return _MatmulAllReduce.apply(x, weight, group)


class _MatmulAllReduce(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, group: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.wanted = not x.stop_gradient, not weight.stop_gradient
        rows = x.reshape([-1, x.shape[-1]])  # the vendor takes two or three axes
        (y,) = communication.run("fused_mm_allreduce", rows, operand(weight, x), group, "sum", 0)
        return y.reshape([*x.shape[:-1], weight.shape[1]])

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, weight = ctx.saved_tensor()
        wants_dx, wants_dweight = ctx.wanted
        dx = paddle.matmul(dy, operand(weight, x), transpose_y=True) if wants_dx else None
        return dx, weight_gradient(x, dy, weight.dtype) if wants_dweight else None
