"""The product of a column-parallel layer without sequence parallelism, whose backward pass has the collective."""

from __future__ import annotations

from typing import Any

import paddle
from paddle.autograd import PyLayer

import fusionkit as fk


def column_product(x: Any, weight: Any, group: Any) -> Any:
    """x @ weight, where x is the same on all ranks and weight holds this rank's columns.

        dx = all_reduce(dy @ weight^T),  dweight = x^T @ dy

    dx is a `matmul_all_reduce`, started first: dweight is computed while the end of its sum is on the way.

    Args:
        x: [..., in_features], replicated.
        weight: [in_features, out_features], sharded on its second axis.
        group: a Paddle group or a `Communicator`.

    Returns:
        [..., out_features], dtype of x, sharded on its last axis.
    """
    if not paddle.is_grad_enabled():
        return fk.fused_linear(x, weight)
    return _ColumnProduct.apply(x, weight, group)


class _ColumnProduct(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, group: Any) -> Any:
        """Runs fused_linear for the gradient of the weight alone, so each backend's own is used."""
        ctx.group, ctx.dtype, ctx.wants_dx = group, x.dtype, not x.stop_gradient
        ctx.weight = weight.detach()
        ctx.weight.stop_gradient = weight.stop_gradient
        ctx.dweight = []
        if not weight.stop_gradient:
            ctx.weight.register_hook(ctx.dweight.append)  # `grad` would add up over several backward passes
        with paddle.enable_grad():
            ctx.y = fk.fused_linear(x.detach(), ctx.weight)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        sum_over_ranks, dweight = None, None
        if ctx.wants_dx:
            sum_over_ranks = fk.matmul_all_reduce(dy, ctx.weight.detach().t(), group=ctx.group, defer=True)
        if not ctx.weight.stop_gradient:
            paddle.autograd.backward([ctx.y], [dy], retain_graph=True)
            dweight = ctx.dweight.pop()
        dx = sum_over_ranks.wait().astype(ctx.dtype) if sum_over_ranks is not None else None
        return dx, dweight
