"""fusion_add_rms_norm: the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusionkit.dtypes import FLOATING
from fusionkit.ops import fusion_rms_norm as rms_norm
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


def fusion_add_rms_norm(x: Any, residual: Any, weight: Any, *, epsilon: float = 1e-5) -> Any:
    """Add to the residual stream, then root-mean-square normalise it.

        residual_out = x + residual
        y = residual_out / sqrt(mean(residual_out^2, axis=-1) + epsilon) * weight

    Args:
        x: [..., hidden_size], float32 / bfloat16 / float16.
        residual: [..., hidden_size], float32 / bfloat16 / float16; its dtype may differ from x's.
        weight: [hidden_size], dtype of x, or float32.
        epsilon: added to the mean square before the root; dimensionless, not negative.

    Returns:
        y: [..., hidden_size], dtype of x. The mean is accumulated in float32; one rounding, at the output.
        residual_out: [..., hidden_size], dtype of residual. y and the gradients are taken from its rounded value, so
            that a backward pass needs nothing but what the forward pass returned.

    Raises:
        ValueError: residual has not x's shape, weight is not [hidden_size], or has neither x's dtype nor float32.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4, on the residual sum of a pre-norm block. Llama 2 uses
    epsilon = 1e-5.
    """


def reference(
    x: Array,
    residual: Array,
    weight: Array,
    *,
    epsilon: float = 1e-5,
    rounding: Rounding = exact,
    store_residual: Rounding = exact,
) -> tuple[Array, Array]:
    residual_out = store_residual(rounding(x + residual))
    return rms_norm.reference(residual_out, weight, epsilon=epsilon, rounding=rounding), residual_out


def reference_vjp(
    grad_outputs: tuple[Array, Array],
    x: Array,
    residual: Array,
    weight: Array,
    *,
    epsilon: float = 1e-5,
    rounding: Rounding = exact,
    store_residual: Rounding = exact,
) -> dict[str, Array]:
    """Storing residual_out is the identity to the gradient."""
    dy, dresidual_out = grad_outputs
    residual_out = store_residual(rounding(x + residual))
    through_norm = rms_norm.reference_vjp(dy, residual_out, weight, epsilon=epsilon, rounding=rounding)
    dx = rounding(through_norm["x"] + dresidual_out)
    return {"x": dx, "residual": dx, "weight": through_norm["weight"]}


def case(*shape: int, name: str = "", scale: float = 1.0, keep_float32: tuple[str, ...] = (), **kwargs: Any) -> Case:
    def arguments(rng: np.random.Generator) -> dict[str, Any]:
        return {
            "x": scale * rng.standard_normal(shape),
            "residual": scale * rng.standard_normal(shape),
            "weight": 1 + 0.1 * rng.standard_normal(shape[-1]),
            **kwargs,
        }

    axes = "BTH"[-len(shape) :]
    label = name or "x".join(f"{axis}{size}" for axis, size in zip(axes, shape, strict=True))
    return Case(label, arguments, llama=shape[-1] >= 4096, keep_float32=keep_float32)


def invalid(name: str, match: str, error: type[Exception] = ValueError, **arguments: Any) -> InvalidCase:
    valid = {"x": np.ones((2, 8)), "residual": np.ones((2, 8)), "weight": np.ones(8)}
    return InvalidCase(name, lambda rng: {**valid, **arguments}, error, match)


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    """Five operations an element: add, square, add, two products. The backward takes ten more; it reads the saved sum
    and two gradients, and writes two."""
    elements, hidden = dims["..."] * dims["hidden_size"], dims["hidden_size"]
    if not training:
        return Cost(5.0 * elements, itemsize * (2 * elements + hidden), itemsize * 2 * elements)
    return Cost(15.0 * elements, itemsize * (5 * elements + 2 * hidden), itemsize * (4 * elements + hidden))


spec = OpSpec(
    signature=fusion_add_rms_norm,
    inputs=(
        Input("x", "... hidden_size", FLOATING),
        Input("residual", "... hidden_size", FLOATING),
        Input("weight", "hidden_size", ("x", "float32")),
    ),
    outputs=(Output("y", "... hidden_size", "x"), Output("residual_out", "... hidden_size", "residual")),
    reference=reference,
    reference_vjp=reference_vjp,
    cases=(
        *(case(3, hidden) for hidden in (15, 16, 17, 31, 33, 64, 127)),
        # With one element and no epsilon the norm's part of dx is 0 exactly, and any rounding infinitely far off.
        *(case(rows, 1, epsilon=1.0) for rows in (1, 3)),
        case(37),
        case(2, 5, 48),
        case(0, 16, name="no-rows"),
        case(4, 32, name="epsilon-0.1", epsilon=0.1),
        case(3, 40, name="large-5e3", scale=5e3),
        case(3, 40, name="small-1e-4", scale=1e-4),
        case(5, 33, name="float32-weight", keep_float32=("weight",)),
        case(5, 33, name="float32-residual", keep_float32=("residual",)),
        case(5, 33, name="float32-residual-and-weight", keep_float32=("residual", "weight")),
        case(5, 33, name="float32-x", keep_float32=("x", "weight")),
        case(7, 5120),
    ),
    invalid_cases=(
        invalid("residual-rows", r"residual must be \[\.\.\., hidden_size\]", residual=np.ones((3, 8))),
        invalid("residual-hidden", r"residual must be .* with hidden_size = 8", residual=np.ones((2, 7))),
        invalid("residual-rank", r"residual must be \[\.\.\., hidden_size\]", residual=np.ones(8)),
        invalid("residual-none", "residual must be a tensor", TypeError, residual=None),
        invalid("residual-integer", "residual must be of dtype", residual=np.ones((2, 8), dtype=np.int32)),
        invalid("weight-length", r"weight must be \[hidden_size\] with hidden_size = 8", weight=np.ones(7)),
        invalid("weight-rank", r"weight must be \[hidden_size\]", weight=np.ones((1, 8))),
        invalid("x-scalar", r"x must be \[\.\.\., hidden_size\]", x=np.ones(())),
        invalid("x-integer", "x must be of dtype float32, bfloat16 or float16", x=np.ones((2, 8), dtype=np.int64)),
        invalid("epsilon-negative", "epsilon must be at least 0", epsilon=-1.0),
    ),
    tolerance=Tolerance(
        forward=Epsilons(
            {"float32": 4, "bfloat16": 0.51, "float16": 0.51},
            "residual_out is one addition, rounded once: 0.5. y is fusion_rms_norm of that stored value: float32 mean "
            "of squares about 1 epsilon, root and two products 1.5, one output rounding 0.5.",
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
    check=rms_norm.check,
    stored={"store_residual": "residual"},
)
