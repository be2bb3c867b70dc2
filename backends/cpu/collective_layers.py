"""The collective ops of this backend on Paddle tensors, with their gradients, in the tensors' own memory.

Each op's own file hands in what fills arrays: its forward and its backward.

Which inputs need a gradient must be the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
from fusionkit_backends.cpu import runtime
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


def cross_entropy(
    x: Any, weight: Any, labels: Any, ignore_index: int, communicator: Communicator, fill: Fill
) -> tuple[Any, Any]:
    wanted = [paddle.is_grad_enabled() and not tensor.stop_gradient for tensor in (x, weight)]
    num_tokens: list[int] = []
    loss_sum = _CrossEntropy.apply(x, weight, dense(labels), ignore_index, communicator, fill, wanted, num_tokens)
    return loss_sum, paddle.to_tensor(num_tokens[0], dtype="int64", place=x.place)


class _CrossEntropy(PyLayer):  # type: ignore[misc]
    """The gradients are taken forward, while the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        weight: Any,
        labels: Any,
        ignore_index: int,
        communicator: Communicator,
        fill: Fill,
        wanted: list[bool],
        num_tokens: list[int],
    ) -> Any:
        ctx.gradients = [
            paddle.empty(tensor.shape, tensor.dtype) if wants else None
            for tensor, wants in zip((x, weight), wanted, strict=True)
        ]
        arrays = [None if gradient is None else host_view(gradient) for gradient in ctx.gradients]
        loss_sum, count = fill(dense(x), host_view(weight), labels, ignore_index, communicator, *arrays)
        num_tokens.append(int(count))
        return paddle.to_tensor(loss_sum, place=x.place)

    @staticmethod
    def backward(ctx: Any, dloss_sum: Any) -> Any:
        return tuple(gradient if gradient is None else _scaled(gradient, dloss_sum) for gradient in ctx.gradients)


def _scaled(gradient: Any, factor: Any) -> Any:
    result = gradient.clone()
    runtime.native().scale(host_view(result), host_view(factor.reshape([1])))
    return result


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
