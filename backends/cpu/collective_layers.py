"""The collective ops of this backend on Paddle tensors, with their gradients, in the tensors' own memory.

Which inputs need a gradient must be the same on all ranks.
"""

from __future__ import annotations

from typing import Any

import paddle
from fusionkit_backends.cpu import all_gather_matmul, matmul_all_reduce, matmul_reduce_scatter
from paddle.autograd import PyLayer

from fusionkit.frameworks.paddle import host_view
from fusionkit.parallel import Communicator


def dense(tensor: Any) -> Any:
    """The tensor's memory as an array, copied first where it is strided."""
    return host_view(tensor.contiguous())


class AllGatherMatmul(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, communicator: Communicator, save_gathered: bool) -> Any:
        rows = x.shape[0] * communicator.world_size
        gathered, y = paddle.empty([rows, x.shape[1]], x.dtype), paddle.empty([rows, weight.shape[1]], x.dtype)
        all_gather_matmul.forward(dense(x), dense(weight), communicator, host_view(gathered), host_view(y))
        ctx.communicator, ctx.save_gathered = communicator, save_gathered
        ctx.save_for_backward(x, weight, *([gathered] if save_gathered else []))
        ctx.set_materialize_grads(False)
        return y, gathered

    @staticmethod
    def backward(ctx: Any, dy: Any, dgathered: Any) -> Any:
        x, weight, *saved = ctx.saved_tensor()
        if dy is None:
            dy = paddle.zeros([x.shape[0] * ctx.communicator.world_size, weight.shape[1]], x.dtype)
        dx, dweight = paddle.empty_like(x), None if weight.stop_gradient else paddle.empty_like(weight)
        all_gather_matmul.backward(
            dense(dy),
            dense(x),
            dense(saved[0]) if saved else None,
            dense(weight),
            ctx.communicator,
            host_view(dx),
            None if dweight is None else host_view(dweight),
            None if dgathered is None else dense(dgathered),
        )
        return dx, dweight


class MatmulReduceScatter(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, communicator: Communicator) -> Any:
        y = paddle.empty([x.shape[0] // communicator.world_size, weight.shape[1]], x.dtype)
        matmul_reduce_scatter.forward(dense(x), dense(weight), communicator, host_view(y))
        ctx.communicator = communicator
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, weight = ctx.saved_tensor()
        dx, dweight = paddle.empty_like(x), None if weight.stop_gradient else paddle.empty_like(weight)
        matmul_reduce_scatter.backward(
            dense(dy),
            dense(x),
            dense(weight),
            ctx.communicator,
            host_view(dx),
            None if dweight is None else host_view(dweight),
        )
        return dx, dweight


class DeferredSum:
    """matmul_all_reduce on its way: `wait()` gives y, and only then is the gradient recorded."""

    def __init__(self, x: Any, weight: Any, communicator: Communicator) -> None:
        self._x, self._weight = x, weight
        self.y = paddle.empty([*x.shape[:-1], weight.shape[1]], x.dtype)
        out = matmul_all_reduce.flat(host_view(self.y))
        self._sum = matmul_all_reduce.start(matmul_all_reduce.flat(dense(x)), dense(weight), communicator, out)

    def wait(self) -> Any:
        self._sum.wait()
        return _Summed.apply(self._x, self._weight, self)


class _Summed(PyLayer):  # type: ignore[misc]
    """The product's gradient for a sum that was computed before."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, deferred: DeferredSum) -> Any:
        ctx.save_for_backward(x, weight)
        return deferred.y

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, weight = ctx.saved_tensor()
        dx, dweight = (None if each.stop_gradient else paddle.empty_like(each) for each in (x, weight))
        matmul_all_reduce.backward(
            matmul_all_reduce.flat(dense(dy)),
            matmul_all_reduce.flat(dense(x)),
            dense(weight),
            None if dx is None else matmul_all_reduce.flat(host_view(dx)),
            None if dweight is None else host_view(dweight),
        )
        return dx, dweight
