"""fusion_rms_norm: the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusionkit.dtypes import FLOATING
from fusionkit.spec import (
    Array,
    Benchmark,
    Case,
    Cost,
    Epsilons,
    Input,
    InvalidCase,
    OpSpec,
    Output,
    Rounding,
    Tolerance,
    exact,
)


def fusion_rms_norm(x: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    """Root-mean-square normalisation of the last axis, scaled by a weight.

        y = x / sqrt(mean(x^2, axis=-1) + epsilon) * weight

    Args:
        x: [..., hidden_size], float32 / bfloat16 / float16.
        weight: [hidden_size], dtype of x, or float32.
        epsilon: added to the mean square before the root; dimensionless, not negative.

    Returns:
        [..., hidden_size], dtype of x. The mean is accumulated in float32; one rounding, at the output.

    Raises:
        ValueError: weight is not [hidden_size], or has neither x's dtype nor float32.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4. Llama 2 uses epsilon = 1e-5.
    """


def reference(x: Array, weight: Array, *, epsilon: float = 1e-5, rounding: Rounding = exact) -> Array:
    rstd = rounding(1.0 / np.sqrt(rounding(np.mean(rounding(x * x), axis=-1, keepdims=True)) + epsilon))
    return rounding(rounding(x * rstd) * weight)


def reference_vjp(
    grad_outputs: Array, x: Array, weight: Array, *, epsilon: float = 1e-5, rounding: Rounding = exact
) -> dict[str, Array]:
    rstd = rounding(1.0 / np.sqrt(rounding(np.mean(rounding(x * x), axis=-1, keepdims=True)) + epsilon))
    normalised = rounding(x * rstd)
    scaled = rounding(grad_outputs * weight)
    mean = rounding(np.mean(rounding(scaled * normalised), axis=-1, keepdims=True))
    leading = tuple(range(x.ndim - 1))
    return {
        "x": rounding(rstd * rounding(scaled - rounding(normalised * mean))),
        "weight": rounding(np.sum(rounding(grad_outputs * normalised), axis=leading)),
    }


def case(*shape: int, name: str = "", scale: float = 1.0, **kwargs: Any) -> Case:
    def arguments(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": scale * rng.standard_normal(shape), "weight": 1 + 0.1 * rng.standard_normal(shape[-1]), **kwargs}

    label = name or "x".join(f"{axis}{size}" for axis, size in zip("BTH"[-len(shape) :], shape, strict=True))
    return Case(label, arguments, llama=shape[-1] >= 4096)


def invalid(name: str, match: str, error: type[Exception] = ValueError, **arguments: Any) -> InvalidCase:
    valid = {"x": np.ones((2, 8)), "weight": np.ones(8)}
    return InvalidCase(name, lambda rng: {**valid, **arguments}, error, match)


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    """Four operations an element: square, add, two products. The backward takes nine more, reads x again and dy."""
    elements, hidden = dims["..."] * dims["hidden_size"], dims["hidden_size"]
    if not training:
        return Cost(4.0 * elements, itemsize * (elements + hidden), itemsize * elements)
    return Cost(13.0 * elements, itemsize * (3 * elements + 2 * hidden), itemsize * (2 * elements + hidden))


def check(call: Any) -> None:
    call.require(call.value("epsilon") >= 0, "epsilon", "at least 0", call.value("epsilon"))


spec = OpSpec(
    signature=fusion_rms_norm,
    inputs=(
        Input("x", "... hidden_size", FLOATING),
        Input("weight", "hidden_size", ("x", "float32")),
    ),
    outputs=(Output("y", "... hidden_size", "x"),),
    reference=reference,
    reference_vjp=reference_vjp,
    cases=(
        *(case(3, hidden) for hidden in (15, 16, 17, 31, 33, 64, 127)),
        # With one element dx = epsilon rstd^3 dy weight: without an epsilon 0, and any rounding infinitely far off.
        *(case(rows, 1, epsilon=1.0) for rows in (1, 3)),
        case(2, 5, 48),
        case(0, 16, name="no-rows"),
        case(4, 32, name="epsilon-0.1", epsilon=0.1),
        case(3, 40, name="large-1e4", scale=1e4),
        case(3, 40, name="small-1e-4", scale=1e-4),
        case(7, 5120),
    ),
    invalid_cases=(
        invalid("weight-length", r"weight must be \[hidden_size\] with hidden_size = 8", weight=np.ones(7)),
        invalid("weight-rank", r"weight must be \[hidden_size\]", weight=np.ones((1, 8))),
        invalid("x-scalar", r"x must be \[\.\.\., hidden_size\]", x=np.ones(())),
        invalid("x-integer", "x must be of dtype float32, bfloat16 or float16", x=np.ones((2, 8), dtype=np.int64)),
        invalid("weight-none", "weight must be a tensor", TypeError, weight=None),
        invalid("epsilon-negative", "epsilon must be at least 0", epsilon=-1.0),
    ),
    tolerance=Tolerance(
        forward=Epsilons(
            {"float32": 4, "bfloat16": 0.51, "float16": 0.51},
            "float32 mean of n squares in 16 or more lanes: about 1 epsilon, root and two products 1.5, one output "
            "rounding 0.5. In 16 bits only the output's rounding is visible.",
        ),
        backward=Epsilons(
            {"float32": 8, "bfloat16": 0.55, "float16": 0.55},
            "two float32 means, and a difference whose terms are as large as the root mean square of dx.",
        ),
    ),
    cost=cost,
    benchmarks=(Benchmark(case(2048, 5120), cold=True), *(Benchmark(case(rows, 5120)) for rows in (1, 8, 64))),
    amp="keep",
    source="Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4",
    check=check,
)
