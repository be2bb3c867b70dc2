"""matmul_reduce_scatter by fused_mm_reduce_scatter; the gradient of x, which the vendor has not, by
fused_allgather_mm."""

from __future__ import annotations

from typing import Any

from fusionkit_backends.npu import communication
from fusionkit_backends.npu.all_gather_matmul import gather_and_multiply, multiply_and_scatter

from fusionkit.adapters import gradients, nothing
from fusionkit.adapters.products import operand, weight_gradient
from fusionkit.parallel import collectives

OP = "matmul_reduce_scatter"


def matmul_reduce_scatter(x: Any, weight: Any, *, group: Any) -> Any:
    if nothing.is_empty(x):
        return nothing.product(x, weight)
    communication.require_group(OP, group)

    def forward(x: Any, weight: Any) -> Any:
        return multiply_and_scatter(x, operand(weight, x), group)

    def backward(dy: Any, x: Any, weight: Any, wants_dx: bool, wants_dweight: bool) -> tuple[Any, Any]:
        """The rows that dx's product gathers are those that dweight's needs."""
        if wants_dx:
            dx, gathered = gather_and_multiply(dy, operand(weight, x).t(), group, wants_dweight)
        else:
            dx, gathered = None, collectives.gathered(dy, group)
        return dx, weight_gradient(x, gathered, weight.dtype) if wants_dweight else None

    return gradients.product(x, weight, forward, backward)
