"""The collective ops of this backend on Paddle tensors, with their gradients, in the tensors' own memory.

Each op's own file hands in what fills arrays: its forward and its backward.

Which inputs need a gradient must be the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
from paddle.autograd import PyLayer

from fusionkit.adapters import gradients
from fusionkit.frameworks.paddle import host_view
from fusionkit.parallel import Communicator

Fill = Callable[..., Any]  # (arrays to read, communicator, arrays to fill)


def dense(tensor: Any) -> Any:
    """The tensor's memory as an array, copied first where it is strided; None for None."""
    return None if tensor is None else host_view(tensor.contiguous())


def empty_gradient(tensor: Any) -> Any:
    """Where the gradient goes, if there is to be one."""
    return None if tensor.stop_gradient else paddle.empty(tensor.shape, tensor.dtype)


class AllGatherMatmul(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, communicator: Communicator, save_gathered: bool, fill: Fill, fill_gradients: Fill
    ) -> Any:
        rows = x.shape[0] * communicator.world_size
        gathered, y = paddle.empty([rows, x.shape[1]], x.dtype), paddle.empty([rows, weight.shape[1]], x.dtype)
        fill(dense(x), host_view(weight), communicator, host_view(gathered), host_view(y))
        ctx.communicator, ctx.save_gathered, ctx.wants_dx = communicator, save_gathered, not x.stop_gradient
        ctx.fill_gradients = fill_gradients
        # Detached: an output that its own node keeps would never be freed if no backward pass comes.
        ctx.save_for_backward(gathered.detach() if save_gathered else x, weight)
        ctx.set_materialize_grads(False)
        return y, gathered

    @staticmethod
    def backward(ctx: Any, dy: Any, dgathered: Any) -> Any:
        saved, weight = ctx.saved_tensor()
        rows = saved.shape[0] // (ctx.communicator.world_size if ctx.save_gathered else 1)
        if dy is None:
            dy = paddle.zeros([rows * ctx.communicator.world_size, weight.shape[1]], saved.dtype)
        dx = paddle.empty([rows, saved.shape[1]], saved.dtype) if ctx.wants_dx else None
        dweight = empty_gradient(weight)
        ctx.fill_gradients(
            dense(dy),
            None if ctx.save_gathered else dense(saved),
            dense(saved) if ctx.save_gathered else None,
            host_view(weight),
            ctx.communicator,
            dense(dx),
            dense(dweight),
            dense(dgathered),
        )
        return dx, dweight


def matmul_and_scatter(x: Any, weight: Any, communicator: Communicator, fill: Fill, fill_gradients: Fill) -> Any:
    def forward(x: Any, weight: Any) -> Any:
        y = paddle.empty([x.shape[0] // communicator.world_size, weight.shape[1]], x.dtype)
        fill(dense(x), host_view(weight), communicator, host_view(y))
        return y

    def backward(dy: Any, x: Any, weight: Any, *_: bool) -> Any:
        dx, dweight = empty_gradient(x), empty_gradient(weight)
        fill_gradients(dense(dy), dense(x), host_view(weight), communicator, dense(dx), dense(dweight))
        return dx, dweight

    return gradients.product(x, weight, forward, backward)


class DeferredSum:
    """matmul_all_reduce on its way: `wait()` gives y, and only then is the gradient recorded."""

    def __init__(self, x: Any, weight: Any, communicator: Communicator, start: Fill, fill_gradients: Fill) -> None:
        self._x, self._weight, self._fill_gradients = x, weight, fill_gradients
        self.y = paddle.empty([*x.shape[:-1], weight.shape[1]], x.dtype)
        self._sum = start(dense(x), host_view(weight), communicator, host_view(self.y))

    def wait(self) -> Any:
        self._sum.wait()
        return gradients.product(self._x, self._weight, lambda *_: self.y, self._gradients)

    def _gradients(self, dy: Any, x: Any, weight: Any, *_: bool) -> Any:
        dx, dweight = empty_gradient(x), empty_gradient(weight)
        self._fill_gradients(dense(dy), dense(x), host_view(weight), dense(dx), dense(dweight))
        return dx, dweight
