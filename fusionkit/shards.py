"""The ranks of a collective op in one process: what each holds, and what the specs of these ops share.

References and gradients take lists, one entry per rank. So parity needs no second process for its oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusionkit.spec import Array, Case, Cost, GroupSpec, InvalidCase, Rounding, TwiceComposition

WORLD_SIZES = (1, 2, 3, 4, 8)

# Of results that are sums of rounded products, which may cancel: no count of the result's own epsilons bounds them.
SUM_OF_ROUNDED_PRODUCTS = TwiceComposition(
    "in 16 bits the composition too rounds each rank's product before it is sent, and the sum once. float32: a quarter "
    "of fused_linear's 128 epsilons of the root mean square, on the largest element, which is some four times that.",
    {"float32": 32.0, "bfloat16": 0.5, "float16": 0.5},
)


def summed(partials: Sequence[Array], rounding: Rounding) -> Array:
    """The sum over ranks, rounded once."""
    return rounding(np.sum(np.stack(partials), axis=0))


def block(array: Array, rank: int, world_size: int) -> Array:
    """The rank's rows of what a reduce-scatter gives."""
    rows = array.shape[0] // world_size
    return array[rank * rows : (rank + 1) * rows]


def product_cost(rows: float, k: float, n: float, itemsize: int, training: bool) -> Cost:
    """One rank's product of [rows, k] by [k, n], and with the backward two more. Bytes of memory, not of the link."""
    if not training:
        return Cost(2.0 * rows * k * n, itemsize * (rows * k + k * n), itemsize * rows * n)
    return Cost(6.0 * rows * k * n, itemsize * (2 * (rows * k + k * n) + rows * n), itemsize * (rows * (k + n) + k * n))


def case(
    world_size: int,
    *x_shape: int,
    n: int,
    keep_float32: tuple[str, ...] = (),
    **values: Any,
) -> Case:
    """Every rank's x and weight. Products of a unit normal x with a weight of 1 / sqrt(in_features) are of size one."""

    def arguments(rng: np.random.Generator) -> dict[str, Any]:
        k = x_shape[-1]
        x = [rng.standard_normal(x_shape) for _ in range(world_size)]
        weight = [rng.standard_normal((k, n)) / np.sqrt(k) for _ in range(world_size)]
        return {"x": x, "weight": weight, "group": GroupSpec(world_size), **values}

    sizes = "x".join([f"W{world_size}", *(f"T{size}" for size in x_shape[:-1]), f"K{x_shape[-1]}", f"N{n}"])
    names = [sizes, *(name if value is True else f"no-{name}" for name, value in values.items())]
    names += [f"float32-{name}" for name in keep_float32]
    return Case("-".join(names).replace("_", "-"), arguments, llama=x_shape[-1] >= 4096, keep_float32=keep_float32)


def invalid(name: str, match: str, error: type[Exception] = ValueError, **arguments: Any) -> InvalidCase:
    """One rank's call."""
    valid = {"x": np.ones((4, 8)), "weight": np.ones((8, 4)), "group": GroupSpec(2)}
    return InvalidCase(name, lambda rng: {**valid, **arguments}, error, match)


INVALID = (
    invalid("weight-in-features", r"weight must be .* with in_features = 8", weight=np.ones((7, 4))),
    invalid("weight-rank", r"weight must be \[in_features, out_features\]", weight=np.ones(8)),
    invalid("weight-integer", "weight must be of dtype", weight=np.ones((8, 4), dtype=np.int8)),
    invalid("weight-none", "weight must be a tensor", TypeError, weight=None),
    invalid("x-integer", "x must be of dtype float32, bfloat16 or float16", x=np.ones((4, 8), dtype=np.int64)),
    invalid("group-none", "group must be a Paddle group", TypeError, group=None),
    invalid("group-number", "group must be a Paddle group", TypeError, group=2),
)
