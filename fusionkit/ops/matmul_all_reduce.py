"""matmul_all_reduce: the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusionkit.call import Call
from fusionkit.dtypes import FLOATING
from fusionkit.shards import (
    INVALID,
    SUM_OF_ROUNDED_PRODUCTS,
    WORLD_SIZES,
    case,
    invalid,
    product_cost,
    summed,
)
from fusionkit.spec import Array, Cost, Epsilons, Input, OpSpec, Output, Rounding, Tolerance, exact
from fusionkit.world_size import bind_world_size


def matmul_all_reduce(x: Any, weight: Any, *, group: Any, defer: bool = False) -> Any:
    """This rank's part of a product, summed over ranks on all ranks: a row-parallel linear layer without sequence
    parallelism.

        y = sum over ranks(x @ weight)

    The gradients need no communication: dx = dy @ weight^T and dweight = x^T @ dy. So dy must be the same on all ranks,
    as it is where all go on to compute the same from y.

    Args:
        x: [..., in_features], float32 / bfloat16 / float16. Sharded on its last axis.
        weight: [in_features, out_features], dtype of x, or float32: a float32 weight is rounded to x's dtype for the
            product, while its gradient stays float32. Sharded on its first axis: each rank's own rows.
        group: a Paddle group, or a `fusionkit.parallel.Communicator`. All its ranks make this call.
        defer: return a handle at once whose `wait()` gives y, so that the end of the sum hides under what is computed
            before. All ranks wait for their handles in the order of the calls.

    Returns:
        [..., out_features], dtype of x. Replicated: the same bits on all ranks. Each rank's product is accumulated in
        float32 and rounded to x's dtype to be sent. The sum over ranks is taken in float32, in the order of ranks, and
        rounded once.

    Raises:
        ValueError: weight is not [in_features, out_features], or a dtype is not as above.
        CommunicatorError: a rank is dead, late, or makes another call.

    Source: Megatron-LM's row-parallel linear layer, Shoeybi et al. 2019, arXiv:1909.08053, section 3.
    """


def reference(
    x: list[Array],
    weight: list[Array],
    *,
    group: Any,
    defer: bool = False,
    rounding: Rounding = exact,
    operand: Rounding = exact,
) -> list[Array]:
    total = summed([rounding(a @ operand(b)) for a, b in zip(x, weight, strict=True)], rounding)
    return [total] * len(x)


def reference_vjp(
    grad_outputs: list[Array],
    x: list[Array],
    weight: list[Array],
    *,
    group: Any,
    defer: bool = False,
    rounding: Rounding = exact,
    operand: Rounding = exact,
) -> dict[str, list[Array]]:
    def rows(array: Array) -> Array:
        return array.reshape(-1, array.shape[-1])

    return {
        "x": [rounding(dy @ operand(each).T) for dy, each in zip(grad_outputs, weight, strict=True)],
        "weight": [rounding(rows(each).T @ rows(dy)) for dy, each in zip(grad_outputs, x, strict=True)],
    }


def check(call: Call) -> None:
    bind_world_size(call)


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    return product_cost(dims["..."], dims["in_features"], dims["out_features"], itemsize, training)


spec = OpSpec(
    signature=matmul_all_reduce,
    inputs=(
        Input("x", "... in_features", FLOATING),
        Input("weight", "in_features out_features", ("x", "float32")),
    ),
    outputs=(Output("y", "... out_features", "x", replicated=True),),
    reference=reference,
    reference_vjp=reference_vjp,
    cases=(
        *(case(world_size, 17, 33, n=15) for world_size in WORLD_SIZES),
        case(2, 1, 1, n=1),
        case(2, 0, 16, n=8),
        case(2, 33, n=8),
        case(3, 2, 5, 64, n=31),
        case(4, 7, 31, n=33, keep_float32=("weight",)),
        case(2, 500, 272, n=72),
        case(2, 64, 5120, n=640),
    ),
    invalid_cases=(*INVALID, invalid("x-scalar", r"x must be \[\.\.\., in_features\]", x=np.ones(()))),
    tolerance=Tolerance(
        forward=SUM_OF_ROUNDED_PRODUCTS,
        backward=Epsilons(
            {"float32": 128, "bfloat16": 0.51, "float16": 0.52},
            "fused_linear's: nothing is sent.",
        ),
    ),
    cost=cost,
    amp="low",
    source="Shoeybi et al. 2019, arXiv:1909.08053, section 3",
    check=check,
    stored={"operand": "x"},
    collective=True,
)
