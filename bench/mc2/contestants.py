"""The callables of a case on one rank. All take the same arrays and give what the fused op gives.

The products are the backend's best on the same unpacked arrays, so what laying out a weight costs is in all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from fusionkit_bench.mc2.cases import ALL_GATHER, ALL_REDUCE, BACKWARD, REDUCE_SCATTER, Case
from fusionkit_bench.mc2.measurement import CHUNKS, COLLECTIVE, CONTROL, FUSED, PRODUCT, SERIAL

import fusionkit
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.parallel import Communicator
from fusionkit.spec import Array

Call = Callable[[], object]


@dataclass(frozen=True)
class Arrays:
    """x, weight and the gradient of y of one rank; and x and that gradient with the rows of all ranks, as gathered."""

    x: Array
    weight: Array
    dy: Array
    whole_x: Array
    whole_dy: Array


def arrays_of(case: Case, rank: int) -> Arrays:
    rng = np.random.default_rng([rank, case.M, case.K, case.N])
    shard = case.M // case.world_size

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32).astype(DTYPES[case.dtype])

    x, dy = normal(case.M, case.K), normal(case.M, case.N)
    return Arrays(
        x[:shard] if case.op == ALL_GATHER else x,
        normal(case.K, case.N),
        dy[:shard] if case.op == REDUCE_SCATTER else dy,
        whole_x=x,
        whole_dy=dy,
    )


def contestants(case: Case, communicator: Communicator, device: Any) -> tuple[dict[str, Call], str]:
    """Contestant -> call, and the name of the unsplit product that all ranks found fastest."""
    arrays = arrays_of(case, communicator.rank)
    baseline, product = fastest(products(case, arrays, device), communicator)
    collective = collective_of(case, arrays, communicator)
    fused = fused_call(case, arrays, communicator)
    calls: dict[str, Call] = {
        PRODUCT: product,
        COLLECTIVE: collective,
        SERIAL: in_turn(product, collective) if computes_first(case) else in_turn(collective, product),
        FUSED: fused,
        CONTROL: serially(fused, device),
        CHUNKS: device.chunks(case, arrays.whole_x, arrays.weight, arrays.whole_dy, communicator),
    }
    return calls, baseline


def computes_first(case: Case) -> bool:
    """A gather brings what is multiplied; a reduction takes what was."""
    gathers = (case.op == ALL_GATHER) != (case.direction == BACKWARD)
    return not gathers


def in_turn(first: Call, second: Call) -> Call:
    def both() -> object:
        return first(), second()

    return both


def products(case: Case, arrays: Arrays, device: Any) -> dict[str, Call]:
    """One product forward; for both gradients two, of the whole x and of the whole gradient of y."""
    if case.direction != BACKWARD:
        return {
            name: lambda run=run: run(arrays.whole_x, arrays.weight)  # type: ignore[misc]
            for name, run in device.products().items()
        }
    return {
        name: lambda run=run: run(arrays.whole_x, arrays.weight, arrays.whole_dy)  # type: ignore[misc]
        for name, run in device.gradients().items()
    }


def fastest(calls: dict[str, Call], communicator: Communicator) -> tuple[str, Call]:
    """Of three times each on all ranks together, the slowest rank's least; so all ranks choose the same."""
    least = np.full(len(calls), np.inf)
    for call in calls.values():
        call()
    for _ in range(3):
        for number, call in enumerate(calls.values()):
            communicator.barrier()
            start = time.perf_counter()
            call()
            least[number] = min(least[number], time.perf_counter() - start)
    name = list(calls)[int(np.argmin(communicator.all_reduce(least, "max")))]
    return name, calls[name]


def collective_of(case: Case, arrays: Arrays, communicator: Communicator) -> Call:
    """The communicator's, on arrays of the sizes that the op moves."""
    ranks = case.world_size
    if case.op == ALL_REDUCE:
        y = np.zeros((case.M, case.N), arrays.x.dtype)
        return lambda: communicator.all_reduce(y)
    if not computes_first(case):
        shard = np.zeros((case.M // ranks, case.K if case.op == ALL_GATHER else case.N), arrays.x.dtype)
        return lambda: communicator.all_gather(shard)
    blocks = np.zeros((ranks, case.M // ranks, case.K if case.op == ALL_GATHER else case.N), arrays.x.dtype)
    return lambda: communicator.reduce_scatter(blocks)


def fused_call(case: Case, arrays: Arrays, communicator: Communicator) -> Call:
    """The public op on NumPy arrays; for the backward, Paddle's gradients of an output made before."""
    op = getattr(fusionkit, case.op)
    if case.direction != BACKWARD:
        return lambda: op(arrays.x, arrays.weight, group=communicator)
    return backward_call(op, arrays, communicator)


def backward_call(op: Any, arrays: Arrays, communicator: Communicator) -> Call:
    import paddle

    from fusionkit.frameworks.paddle import from_numpy

    x, weight, dy = (from_numpy(np.ascontiguousarray(each), "cpu") for each in (arrays.x, arrays.weight, arrays.dy))
    x.stop_gradient = weight.stop_gradient = False
    y = op(x, weight, group=communicator)
    return lambda: paddle.grad([y], [x, weight], [dy], retain_graph=True)


def serially(call: Call, device: Any) -> Call:
    """The same op by its serial path: the negative control."""

    def run() -> object:
        with device.serially():
            return call()

    return run
