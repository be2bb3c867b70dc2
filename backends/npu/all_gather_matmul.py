"""all_gather_matmul by fused_allgather_mm; the gradient of x, which the vendor lacks, by fused_mm_reduce_scatter."""

from __future__ import annotations

from typing import Any

import paddle
from fusionkit_backends.npu import communication
from paddle.autograd import PyLayer

from fusionkit.adapters import nothing
from fusionkit.adapters.products import operand, weight_gradient
from fusionkit.parallel import collectives

OP = "all_gather_matmul"


def all_gather_matmul(
    x: Any, weight: Any, *, group: Any, return_gathered: bool = False, save_gathered: bool = True
) -> Any:
    if nothing.is_empty(x):
        y = nothing.product(x, weight)
        return (y, x) if return_gathered else y
    communication.require_group(OP, group)
    save = save_gathered and paddle.is_grad_enabled() and not weight.stop_gradient
    outputs = _AllGatherMatmul.apply(x, weight, group, return_gathered, save)
    return tuple(outputs) if return_gathered else outputs


def gather_and_multiply(x: Any, weight: Any, group: Any, gather_output: bool) -> list[Any]:
    """[y, gathered]; the second has one element where it is not asked for."""
    # gather_index 0: x is what is gathered; comm_turn 0: the vendor chooses the chunks.
    return communication.run("fused_allgather_mm", x, weight, group, group.world_size, 0, gather_output, 0)


def multiply_and_scatter(x: Any, weight: Any, group: Any) -> Any:
    return communication.run("fused_mm_reduce_scatter", x, weight, group, group.world_size, "sum", 0)[0]


class _AllGatherMatmul(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, group: Any, return_gathered: bool, save_gathered: bool) -> Any:
        ctx.set_materialize_grads(False)
        y, gathered = gather_and_multiply(x, operand(weight, x), group, return_gathered or save_gathered)
        # Detached: an output that its own node keeps would never be freed if no backward pass comes.
        ctx.save_for_backward(gathered.detach() if save_gathered else x, weight)
        ctx.group, ctx.gathered = group, save_gathered
        ctx.wanted = not x.stop_gradient, not weight.stop_gradient
        return (y, gathered) if return_gathered else y

    @staticmethod
    def backward(ctx: Any, dy: Any, dgathered: Any = None) -> Any:
        rows, weight = ctx.saved_tensor()
        wants_dx, wants_dweight = ctx.wanted
        dx = _rows_gradient(ctx, dy, dgathered, operand(weight, rows)) if wants_dx else None
        if not wants_dweight:
            return dx, None
        if dy is None:
            return dx, paddle.zeros_like(weight)
        gathered = rows if ctx.gathered else collectives.gathered(rows, ctx.group)
        return dx, weight_gradient(gathered, dy, weight.dtype)


def _rows_gradient(ctx: Any, dy: Any, dgathered: Any, weight: Any) -> Any:
    """reduce_scatter(dy @ weight^T + dgathered). With a gradient of gathered there is no fused op: one plain sum over
    ranks sends half of what two would."""
    if dgathered is None:
        return multiply_and_scatter(dy, weight.t(), ctx.group)
    if dy is not None:
        dgathered = paddle.matmul(dy, weight, transpose_y=True) + dgathered
    return collectives.reduce_scattered(dgathered, ctx.group)
