"""matmul_all_reduce on the CPU: each part of the rows is summed while the next is computed.

Backward, nothing is sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from fusionkit_backends.cpu import choice, overlap_model, overlapped
from fusionkit_backends.cpu.agreement import Agreement
from fusionkit_backends.cpu.packed_operand import PackedOperand
from fusionkit_backends.cpu.weight_gradient import WeightGradient

from fusionkit.parallel import Communicator, Work
from fusionkit.parallel.groups import communicator_of
from fusionkit.spec import Array

OP = "matmul_all_reduce"


@dataclass(frozen=True)
class Deferred:
    """A sum on its way: `wait()` gives y."""

    works: list[Work]
    agreement: Agreement
    y: Array

    def wait(self) -> Array:
        with self.agreement:
            for work in self.works:
                overlapped.await_work(work)
        return self.y


def start(x: Array, weight: Array, communicator: Communicator, y: Array) -> Deferred:
    """Compute x @ weight, and begin to sum it into y."""
    rows = flat(x)
    parts = choice.parts(OP, overlap_model.reduce_all, communicator, len(rows), weight, x) or [slice(0, len(rows))]
    agreement = Agreement(communicator, OP, choice.described(rows, weight))
    operand = PackedOperand(weight, x.dtype)
    works = overlapped.start_multiply_and_reduce(rows, operand, communicator, parts, flat(y))
    return Deferred(works, agreement, y)


def through_numpy(x: Array, weight: Array, *, group: Any, defer: bool = False) -> Any:
    y = np.empty((*x.shape[:-1], weight.shape[1]), x.dtype)
    deferred = start(x, weight, communicator_of(group), y)
    return deferred if defer else deferred.wait()


def backward(dy: Array, x: Array, weight: Array, dx: Array | None, dweight: Array | None) -> None:
    """Fills dx and dweight, those that are wanted."""
    if dx is not None:
        PackedOperand(weight.T, dy.dtype).multiply(flat(dy), flat(dx))
    if dweight is not None:
        WeightGradient(dweight).whole(flat(x), flat(dy))


def vjp(grad_outputs: Array, x: Array, weight: Array, *, group: Any, defer: bool = False) -> dict[str, Array]:
    dx, dweight = np.empty(x.shape, x.dtype), np.empty(weight.shape, weight.dtype)
    backward(grad_outputs, x, weight, dx, dweight)
    return {"x": dx, "weight": dweight}


def flat(array: Array) -> Array:
    """All but the last axis as one."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])  # -1 is undefined where the last axis is empty


def through_paddle(x: Any, weight: Any, *, group: Any, defer: bool = False) -> Any:
    from fusionkit_backends.cpu import collective_layers

    deferred = collective_layers.DeferredSum(x, weight, communicator_of(group), start, backward)
    return deferred if defer else deferred.wait()
