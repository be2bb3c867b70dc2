"""matmul_reduce_scatter: the spec."""

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


def matmul_reduce_scatter(x: Any, weight: Any, *, group: Any) -> Any:
    """This rank's part of a product, summed over ranks, each keeping its rows: a row-parallel linear layer.

        y = rows of this rank in sum over ranks(x @ weight)

    The gradients are dx = all_gather(dy) @ weight^T and dweight = x^T @ all_gather(dy).

    Args:
        x: [rows, in_features], float32 / bfloat16 / float16. Sharded on its second axis; rows a multiple of world_size.
        weight: [in_features, out_features], dtype of x, or float32: a float32 weight is rounded to x's dtype for the
            product, while its gradient stays float32. Sharded on its first axis: each rank's own rows.
        group: a Paddle group, or a `fusionkit.parallel.Communicator`. All its ranks make this call.

    Returns:
        [rows / world_size, out_features], dtype of x. Sharded on its first axis. Each rank's product is accumulated in
        float32 and rounded to x's dtype to be sent. The sum over ranks is taken in float32, in the order of ranks, and
        rounded once.

    Raises:
        ValueError: rows is not a multiple of world_size, weight is not [in_features, out_features], or a dtype is not
            as above.
        CommunicatorError: a rank is dead, late, or makes another call.

    Source: Megatron-LM's row-parallel linear layer with sequence parallelism, Korthikanti et al. 2022,
    arXiv:2205.05198, section 4.2.2.
    """


def reference(
    x: list[Array], weight: list[Array], *, group: Any, rounding: Rounding = exact, operand: Rounding = exact
) -> list[Array]:
    total = summed([rounding(a @ operand(b)) for a, b in zip(x, weight, strict=True)], rounding)
    return [block(total, rank, len(x)) for rank in range(len(x))]


def reference_vjp(
    grad_outputs: list[Array],
    x: list[Array],
    weight: list[Array],
    *,
    group: Any,
    rounding: Rounding = exact,
    operand: Rounding = exact,
) -> dict[str, list[Array]]:
    gathered = np.concatenate(grad_outputs)
    return {
        "x": [rounding(gathered @ operand(each).T) for each in weight],
        "weight": [rounding(each.T @ gathered) for each in x],
    }


def check(call: Call) -> None:
    world_size, rows = bind_world_size(call), call.dims["rows"]
    fits = rows == UNKNOWN or rows % world_size == 0
    call.require(
        fits, "x", "[rows, in_features] with rows a multiple of world_size", rows, f"world_size {world_size}", "Pad it"
    )
    call.dims["scattered_rows"] = UNKNOWN if rows == UNKNOWN else rows // world_size


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    return product_cost(dims["rows"], dims["in_features"], dims["out_features"], itemsize, training)


spec = OpSpec(
    signature=matmul_reduce_scatter,
    inputs=(
        Input("x", "rows in_features", FLOATING),
        Input("weight", "in_features out_features", ("x", "float32")),
    ),
    outputs=(Output("y", "scattered_rows out_features", "x"),),
    reference=reference,
    reference_vjp=reference_vjp,
    cases=(
        *(case(world_size, 24, 33, n=17) for world_size in WORLD_SIZES),
        case(2, 2, 1, n=1),
        case(2, 0, 16, n=8),
        case(3, 51, 64, n=31),
        case(4, 28, 31, n=33, keep_float32=("weight",)),
        case(2, 512, 272, n=72),
        case(2, 64, 5120, n=640),
    ),
    invalid_cases=(
        *INVALID,
        invalid("x-rank", r"x must be \[rows, in_features\]", x=np.ones((2, 2, 8))),
        invalid("rows", "x must be .* with rows a multiple of world_size, got 5; world_size 2", x=np.ones((5, 8))),
    ),
    tolerance=Tolerance(
        forward=SUM_OF_ROUNDED_PRODUCTS,
        backward=Epsilons(
            {"float32": 128, "bfloat16": 0.51, "float16": 0.52},
            "fused_linear's: what is gathered is not rounded again.",
        ),
    ),
    cost=cost,
    amp="low",
    source="Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2",
    check=check,
    stored={"operand": "x"},
    collective=True,
)
