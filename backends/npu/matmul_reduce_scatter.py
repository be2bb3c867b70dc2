"""matmul_reduce_scatter by fused_mm_reduce_scatter; the gradient of x, which the vendor has not, by
fused_allgather_mm."""

from __future__ import annotations

from typing import Any

from fusionkit_backends.npu import communication
from fusionkit_backends.npu.all_gather_matmul import gather_and_multiply, multiply_and_scatter
from fusionkit_backends.npu.products import operand, weight_gradient
from paddle.autograd import PyLayer

from fusionkit.eager.fused_linear import fused_linear
from fusionkit.parallel import collectives

OP = "matmul_reduce_scatter"


def matmul_reduce_scatter(x: Any, weight: Any, *, group: Any) -> Any:
    if 0 in x.shape:  # no row: nothing to launch, nothing to send
        return fused_linear(x, weight)
    communication.require_group(OP, group)
    return _MatmulReduceScatter.apply(x, weight, group)


class _MatmulReduceScatter(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, group: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.group = group
        ctx.wanted = not x.stop_gradient, not weight.stop_gradient
        return multiply_and_scatter(x, operand(weight, x), group)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        """The rows that dx's product gathers are those that dweight's needs."""
        x, weight = ctx.saved_tensor()
        wants_dx, wants_dweight = ctx.wanted
        if wants_dx:
            dx, gathered = gather_and_multiply(dy, operand(weight, x).t(), ctx.group, wants_dweight)
        else:
            dx, gathered = None, collectives.gathered(dy, ctx.group)
        return dx, weight_gradient(x, gathered, weight.dtype) if wants_dweight else None
