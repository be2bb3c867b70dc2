"""What `fusionkit bench mc2` needs of the CPU: its best unsplit products, its own chunks, and overlap switched off.

Every product takes the weight as the op does, unpacked, and lays it out in each call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from fusionkit_backends.cpu import overlap_model, runtime
from fusionkit_backends.cpu.overlap import record, serially
from fusionkit_backends.cpu.overlap_model import forget
from fusionkit_backends.cpu.packed_operand import PackedOperand
from fusionkit_backends.cpu.weight_gradient import WeightGradient
from fusionkit_bench.mc2.cases import ALL_GATHER, ALL_REDUCE, BACKWARD, REDUCE_SCATTER, Case

from fusionkit.frameworks.numpy import DTYPES
from fusionkit.parallel import Communicator
from fusionkit.spec import Array

__all__ = ["chunks", "forget", "gradients", "num_chunks", "products", "record", "serially"]


def products() -> dict[str, Callable[[Array, Array], object]]:
    """x [M, K] @ weight [K, N], the ways there are: the fastest is the baseline."""

    def packed(x: Array, weight: Array) -> object:
        y = np.empty((len(x), weight.shape[1]), x.dtype)
        PackedOperand(weight, x.dtype).multiply(x, y)
        return y

    whose = whose_products()
    return {
        f"{whose} product": lambda x, weight: runtime.native().linear(x, weight, None),
        f"{whose} product, weight packed": packed,
    }


def gradients() -> dict[str, Callable[[Array, Array, Array], object]]:
    """dy @ weight^T and x^T @ dy, the ways there are."""

    def packed(x: Array, weight: Array, dy: Array) -> object:
        dx, dweight = np.empty(x.shape, x.dtype), np.empty(weight.shape, weight.dtype)
        PackedOperand(weight.T, x.dtype).multiply(dy, dx)
        WeightGradient(dweight).whole(x, dy)
        return dx, dweight

    whose = whose_products()
    return {
        f"{whose} products": lambda x, weight, dy: runtime.native().linear_grad(x, weight, dy, None),
        f"{whose} products, weight packed": packed,
    }


def whose_products() -> str:
    """On an instruction set where oneDNN is not the faster one, our own loop runs."""
    return {"onednn": "oneDNN's", "blocked": "the own"}[runtime.native().matmul_library()]


def num_chunks(case: Case, communicator: Communicator) -> int:
    """S: how often the part that nothing hides, the smallest, goes into a rank's rows, or all of matmul_all_reduce."""
    parts = parts_of(case, communicator)
    return round(parts[-1].stop / min(part.stop - part.start for part in parts))


def parts_of(case: Case, communicator: Communicator) -> list[slice]:
    """As the op cuts, where it overlaps."""
    gathers = (case.op == ALL_GATHER) != (case.direction == BACKWARD)
    backward = case.direction == BACKWARD
    model = partial(overlap_model.gather if gathers else overlap_model.scatter, num_products=2 if backward else 1)
    rows = case.M // case.world_size
    if case.op == ALL_REDUCE:
        model, rows = partial(overlap_model.reduce_all), case.M
    shape = (case.N, case.K) if backward else (case.K, case.N)
    dtype = DTYPES[case.dtype]
    return model(overlap_model.rates(communicator, dtype), rows, shape, dtype.itemsize, case.world_size).parts


def chunks(case: Case, x: Array, weight: Array, dy: Array, communicator: Communicator) -> Callable[[], object]:
    """The op's products, cut as it cuts them: x, or dy backward, has the rows of all ranks."""
    parts = parts_of(case, communicator)
    if case.op == ALL_REDUCE:
        pieces = parts
    else:
        shard = case.M // case.world_size
        pieces = [slice(0, shard)]  # a rank's own rows are one product
        for owner in range(1, case.world_size):
            pieces += [slice(owner * shard + part.start, owner * shard + part.stop) for part in parts]

    def forward() -> object:
        return multiply(x, weight, pieces)

    def backward() -> object:
        gradient = WeightGradient(np.empty(weight.shape, weight.dtype))
        dx = multiply(dy, weight.T, pieces)
        if case.op == REDUCE_SCATTER:
            for rank in range(case.world_size):
                rows = slice(rank * shard, (rank + 1) * shard)
                gradient.add(x[rows], dy[rows])
            gradient.finish()
        else:
            gradient.whole(x, dy)
        return dx, gradient

    return backward if case.direction == BACKWARD else forward


def multiply(x: Array, weight: Array, pieces: list[slice]) -> Any:
    y = np.empty((len(x), weight.shape[1]), x.dtype)
    operand = PackedOperand(weight, x.dtype)
    for rows in pieces:
        operand.multiply(x[rows], y[rows])
    return y
