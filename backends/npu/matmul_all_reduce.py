"""matmul_all_reduce by fused_mm_allreduce. Its gradients have no collective: two products of the device's own."""

from __future__ import annotations

from typing import Any

import paddle
from fusionkit_backends.npu import communication

from fusionkit.adapters import gradients, nothing
from fusionkit.adapters.handle import Done
from fusionkit.adapters.products import operand, weight_gradient

OP = "matmul_all_reduce"


def matmul_all_reduce(x: Any, weight: Any, *, group: Any, defer: bool = False) -> Any:
    """The device runs behind the host, so a handle has nothing to wait for; what comes next on the stream starts after
    the sum, and no end of it hides."""
    y = _summed(x, weight, group)
    return Done(y) if defer else y


def _summed(x: Any, weight: Any, group: Any) -> Any:
    if nothing.is_empty(x):
        return nothing.product(x, weight)
    communication.require_group(OP, group)

    def forward(x: Any, weight: Any) -> Any:
        rows = x.reshape([-1, x.shape[-1]])  # the vendor takes two or three axes
        (y,) = communication.run("fused_mm_allreduce", rows, operand(weight, x), group, "sum", 0)
        return y.reshape([*x.shape[:-1], weight.shape[1]])

    return gradients.product(x, weight, forward, _gradients)


def _gradients(dy: Any, x: Any, weight: Any, wants_dx: bool, wants_dweight: bool) -> tuple[Any, Any]:
    dx = paddle.matmul(dy, operand(weight, x), transpose_y=True) if wants_dx else None
    return dx, weight_gradient(x, dy, weight.dtype) if wants_dweight else None
