"""all_gather_matmul on the CPU: rows are multiplied as they arrive.

Backward, the gradients of the rows leave while that of the weight is computed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from fusionkit_backends.cpu import choice, overlap_model, overlapped
from fusionkit_backends.cpu.agreement import Agreement
from fusionkit_backends.cpu.packed_operand import PackedOperand
from fusionkit_backends.cpu.weight_gradient import WeightGradient

from fusionkit.parallel import Communicator, Work
from fusionkit.parallel.groups import communicator_of
from fusionkit.spec import Array

OP = "all_gather_matmul"
BACKWARD = "all_gather_matmul_grad"


def forward(x: Array, weight: Array, communicator: Communicator, gathered: Array, y: Array) -> None:
    """Fills gathered and y."""
    parts = choice.parts(OP, overlap_model.gather, communicator, len(x), weight, x)
    with Agreement(communicator, OP, choice.described(x, weight)):
        operand = PackedOperand(weight, x.dtype)
        if parts:
            overlapped.gather_and_multiply(x, operand, communicator, parts, gathered, y)
        else:
            overlapped.gather_then_multiply(x, operand, communicator, gathered, y)


def backward(
    dy: Array,
    x: Array | None,
    gathered: Array | None,
    weight: Array,
    communicator: Communicator,
    dx: Array | None,
    dweight: Array | None,
    dgathered: Array | None = None,
) -> None:
    """Fills dx and dweight, those that are wanted. Of x and gathered one is given: x is gathered again."""
    with Agreement(communicator, BACKWARD, choice.described(dy, weight, _wanted(x, dx))):
        arriving: list[Work] = []
        if gathered is None and x is not None and dweight is not None:
            gathered = np.empty((len(dy), weight.shape[0]), dy.dtype)
            gathered[overlapped.rows_of(communicator.rank, len(x))] = x
            arriving = [work for *_, work in overlapped.start_gather(x, communicator, [slice(0, len(x))], gathered)]

        def weight_gradient() -> None:
            for work in arriving:
                overlapped.await_work(work)
            if dweight is not None and gathered is not None:
                WeightGradient(dweight).whole(gathered, dy)

        if dx is None:
            weight_gradient()
            return
        model = partial(overlap_model.scatter, num_products=1 if dweight is None else 2)
        parts = choice.parts(BACKWARD, model, communicator, len(dx), weight.T, dy)
        operand = PackedOperand(weight.T, dy.dtype)
        if parts:
            overlapped.multiply_and_scatter(dy, operand, communicator, parts, dx, weight_gradient, dgathered)
        else:
            overlapped.multiply_then_scatter(dy, operand, communicator, dx, dgathered)
            weight_gradient()


def _wanted(x: Array | None, dx: Array | None) -> str:
    return f", {'gathered' if x is None else 'gathering'}{'' if dx is None else ', dx'}"


def through_numpy(
    x: Array, weight: Array, *, group: Any, return_gathered: bool = False, save_gathered: bool = True
) -> Any:
    communicator = communicator_of(group)
    x = np.ascontiguousarray(x)
    rows = len(x) * communicator.world_size
    gathered, y = np.empty((rows, x.shape[1]), x.dtype), np.empty((rows, weight.shape[1]), x.dtype)
    forward(x, weight, communicator, gathered, y)
    return (y, gathered) if return_gathered else y


def vjp(
    grad_outputs: Any,
    x: Array,
    weight: Array,
    *,
    group: Any,
    return_gathered: bool = False,
    save_gathered: bool = True,
) -> dict[str, Array]:
    """NumPy calls save nothing, so the rows are gathered again."""
    dy, dgathered = grad_outputs if return_gathered else (grad_outputs, None)
    dx, dweight = np.empty(x.shape, x.dtype), np.empty(weight.shape, weight.dtype)
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    dgathered = None if dgathered is None else np.ascontiguousarray(dgathered)
    backward(dy, x, None, weight, communicator_of(group), dx, dweight, dgathered)
    return {"x": dx, "weight": dweight}


def through_paddle(
    x: Any, weight: Any, *, group: Any, return_gathered: bool = False, save_gathered: bool = True
) -> Any:
    from fusionkit_backends.cpu import collective_layers

    y, gathered = collective_layers.AllGatherMatmul.apply(
        x, weight, communicator_of(group), save_gathered, forward, backward
    )
    return (y, gathered) if return_gathered else y
