"""all_gather_matmul: the spec."""

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
    block,
    case,
    invalid,
    product_cost,
    summed,
)
from fusionkit.spec import UNKNOWN, Array, Cost, Epsilons, Input, OpSpec, Output, Rounding, Tolerance, exact
from fusionkit.world_size import bind_world_size


def all_gather_matmul(
    x: Any, weight: Any, *, group: Any, return_gathered: bool = False, save_gathered: bool = True
) -> Any:
    """All-gather of the rows, times this rank's columns of the weight: a column-parallel linear layer.

        gathered = concat(x of rank 0, ..., x of rank world_size - 1)
        y = gathered @ weight

    The gradients are dx = reduce_scatter(dy @ weight^T), summed over ranks, and dweight = gathered^T @ dy.

    Args:
        x: [rows, in_features], float32 / bfloat16 / float16. Sharded on its first axis: the same size on all ranks.
        weight: [in_features, out_features], dtype of x, or float32: a float32 weight is rounded to x's dtype for the
            product, while its gradient stays float32. Sharded on its second axis: each rank's own columns.
        group: a Paddle group, or a `fusionkit.parallel.Communicator`. All its ranks make this call.
        return_gathered: also return gathered, which is differentiable.
        save_gathered: keep gathered for the gradient of the weight (world_size times the memory of x); else it is
            gathered again in the backward pass. The same on all ranks.

    Returns:
        y: [rows * world_size, out_features], dtype of x. Sharded on its second axis. Accumulated in float32, one
            rounding; bit-equal to the unfused product of gathered.
        gathered: [rows * world_size, in_features], dtype of x. Replicated.

    Raises:
        ValueError: weight is not [in_features, out_features], or has neither x's dtype nor float32.
        CommunicatorError: a rank is dead, late, or makes another call.

    Source: Megatron-LM's column-parallel linear layer with sequence parallelism, Korthikanti et al. 2022,
    arXiv:2205.05198, section 4.2.2.
    """


def reference(
    x: list[Array],
    weight: list[Array],
    *,
    group: Any,
    return_gathered: bool = False,
    save_gathered: bool = True,
    rounding: Rounding = exact,
    operand: Rounding = exact,
) -> list[Any]:
    gathered = np.concatenate(x)
    products = [rounding(gathered @ operand(each)) for each in weight]
    return [(y, gathered) for y in products] if return_gathered else list(products)


def reference_vjp(
    grad_outputs: list[Any],
    x: list[Array],
    weight: list[Array],
    *,
    group: Any,
    return_gathered: bool = False,
    save_gathered: bool = True,
    rounding: Rounding = exact,
    operand: Rounding = exact,
) -> dict[str, list[Array]]:
    """Each rank's product contributes to every rank's rows; they are summed once, by the rows' owner."""
    gathered = np.concatenate(x)
    products = [grads[0] if return_gathered else grads for grads in grad_outputs]
    partials = [rounding(dy @ operand(each).T) for dy, each in zip(products, weight, strict=True)]
    if return_gathered:
        partials = [rounding(partial + grads[1]) for partial, grads in zip(partials, grad_outputs, strict=True)]
    total = summed(partials, rounding)
    return {
        "x": [block(total, rank, len(x)) for rank in range(len(x))],
        "weight": [rounding(gathered.T @ dy) for dy in products],
    }


def check(call: Call) -> None:
    world_size, rows = bind_world_size(call), call.dims["rows"]
    call.dims["gathered_rows"] = UNKNOWN if rows == UNKNOWN else rows * world_size


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    return product_cost(dims["gathered_rows"], dims["in_features"], dims["out_features"], itemsize, training)


spec = OpSpec(
    signature=all_gather_matmul,
    inputs=(
        Input("x", "rows in_features", FLOATING),
        Input("weight", "in_features out_features", ("x", "float32")),
    ),
    outputs=(
        Output("y", "gathered_rows out_features", "x"),
        Output("gathered", "gathered_rows in_features", "x", when="return_gathered"),
    ),
    reference=reference,
    reference_vjp=reference_vjp,
    cases=(
        *(case(world_size, 17, 33, n=15) for world_size in WORLD_SIZES),
        case(2, 1, 1, n=1),
        case(2, 0, 16, n=8),
        case(3, 5, 64, n=31, return_gathered=True),
        case(2, 13, 48, n=32, save_gathered=False),
        case(4, 7, 31, n=33, keep_float32=("weight",)),
        case(2, 256, 512, n=24),
        case(2, 64, 5120, n=640),
    ),
    invalid_cases=(*INVALID, invalid("x-rank", r"x must be \[rows, in_features\]", x=np.ones((2, 2, 8)))),
    tolerance=Tolerance(
        forward=Epsilons(
            {"float32": 128, "bfloat16": 0.51, "float16": 0.52},
            "fused_linear's: the sums are the same, whatever arrives first.",
        ),
        backward=SUM_OF_ROUNDED_PRODUCTS,
    ),
    cost=cost,
    amp="low",
    source="Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2",
    check=check,
    stored={"operand": "x"},
    collective=True,
)
