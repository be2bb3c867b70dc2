"""matmul_reduce_scatter on the CPU: rows leave as they are computed.

Backward, both products of an arriving shard run while the next is on its way.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from fusionkit_backends.cpu import choice, overlap_model, overlapped
from fusionkit_backends.cpu.agreement import Agreement
from fusionkit_backends.cpu.packed_operand import PackedOperand
from fusionkit_backends.cpu.weight_gradient import WeightGradient

from fusionkit.parallel import Communicator
from fusionkit.parallel.groups import communicator_of
from fusionkit.spec import Array

OP = "matmul_reduce_scatter"
BACKWARD = "matmul_reduce_scatter_grad"


def forward(x: Array, weight: Array, communicator: Communicator, y: Array) -> None:
    """Fills y."""
    parts = choice.parts(OP, overlap_model.scatter, communicator, len(y), weight, x)
    with Agreement(communicator, OP, choice.described(x, weight)):
        operand = PackedOperand(weight, x.dtype)
        if parts:
            overlapped.multiply_and_scatter(x, operand, communicator, parts, y)
        else:
            overlapped.multiply_then_scatter(x, operand, communicator, y)


def backward(
    dy: Array, x: Array, weight: Array, communicator: Communicator, dx: Array | None, dweight: Array | None
) -> None:
    """Fills dx and dweight, those that are wanted: two products for each rank's rows of dy, this rank's first."""
    gradient = None if dweight is None else WeightGradient(dweight)
    gathered = np.empty((len(x), weight.shape[1]), dy.dtype)

    def add(rows: slice) -> None:
        if gradient is not None:
            gradient.add(x[rows], gathered[rows])

    with Agreement(communicator, BACKWARD, choice.described(dy, weight, "" if dx is None else ", dx")):
        if dx is None:
            overlapped.gather(dy, communicator, gathered)
        else:
            model = partial(overlap_model.gather, num_products=1 if dweight is None else 2)
            parts = choice.parts(BACKWARD, model, communicator, len(dy), weight.T, dy)
            operand = PackedOperand(weight.T, dy.dtype)
            if parts:
                overlapped.gather_and_multiply(dy, operand, communicator, parts, gathered, dx, add)
                return gradient.finish() if gradient is not None else None
            overlapped.gather_then_multiply(dy, operand, communicator, gathered, dx)
        if gradient is not None:
            gradient.whole(x, gathered)


def through_numpy(x: Array, weight: Array, *, group: Any) -> Array:
    communicator = communicator_of(group)
    y = np.empty((len(x) // communicator.world_size, weight.shape[1]), x.dtype)
    forward(x, weight, communicator, y)
    return y


def vjp(grad_outputs: Array, x: Array, weight: Array, *, group: Any) -> dict[str, Array]:
    dx, dweight = np.empty(x.shape, x.dtype), np.empty(weight.shape, weight.dtype)
    backward(np.ascontiguousarray(grad_outputs), x, weight, communicator_of(group), dx, dweight)
    return {"x": dx, "weight": dweight}


def through_paddle(x: Any, weight: Any, *, group: Any) -> Any:
    from fusionkit_backends.cpu import collective_layers

    return collective_layers.matmul_and_scatter(x, weight, communicator_of(group), forward, backward)
