"""swiglu: the spec."""

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


def swiglu(gate: Any, up: Any) -> Any:
    """Gated linear unit with the SiLU activation, element by element.

        y = silu(gate) * up,    silu(g) = g / (1 + exp(-g))

    Args:
        gate: [..., intermediate_size], float32 / bfloat16 / float16.
        up: [..., intermediate_size], dtype of gate.

    Returns:
        [..., intermediate_size], dtype of gate. Computed in float32; one rounding, at the output.

    Raises:
        ValueError: up has not gate's shape or dtype.

    Source: Shazeer 2020, arXiv:2002.05202, section 2, with beta = 1 as in Llama 2.
    """


def sigmoid(gate: Array, rounding: Rounding) -> Array:
    """1 / (1 + exp(-gate)) without overflow."""
    return rounding(np.exp(-np.logaddexp(0.0, -gate)))


def reference(gate: Array, up: Array, *, rounding: Rounding = exact) -> Array:
    return rounding(rounding(gate * sigmoid(gate, rounding)) * up)


def reference_vjp(grad_outputs: Array, gate: Array, up: Array, *, rounding: Rounding = exact) -> dict[str, Array]:
    probability = sigmoid(gate, rounding)
    slope = rounding(probability * rounding(1 + rounding(gate * rounding(1 - probability))))
    return {
        "gate": rounding(rounding(grad_outputs * up) * slope),
        "up": rounding(grad_outputs * rounding(gate * probability)),
    }


def case(*shape: int, name: str = "", scale: float = 1.0) -> Case:
    def arguments(rng: np.random.Generator) -> dict[str, Any]:
        return {"gate": scale * rng.standard_normal(shape), "up": rng.standard_normal(shape)}

    axes = "BTI"[-len(shape) :]
    label = name or "x".join(f"{axis}{size}" for axis, size in zip(axes, shape, strict=True))
    return Case(label, arguments, llama=shape[-1] >= 4096)


def saturated(rng: np.random.Generator) -> dict[str, Any]:
    """Gates where exp overflows or vanishes in float32, and zero."""
    gate = np.array([[-6e4, -1e3, -104.0, -89.0, -88.0, -17.0, 0.0, 17.0, 88.0, 89.0, 1e3]])
    return {"gate": gate, "up": np.clip(rng.standard_normal(gate.shape), -1, 1)}


def invalid(name: str, match: str, error: type[Exception] = ValueError, **arguments: Any) -> InvalidCase:
    valid = {"gate": np.ones((2, 8)), "up": np.ones((2, 8))}
    return InvalidCase(name, lambda rng: {**valid, **arguments}, error, match)


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    """Five operations an element: exp, add, divide, two products. The backward takes eight more, and reads gate and up
    again."""
    elements = dims["..."] * dims["intermediate_size"]
    if not training:
        return Cost(5.0 * elements, itemsize * 2 * elements, itemsize * elements)
    return Cost(13.0 * elements, itemsize * 5 * elements, itemsize * 3 * elements)


spec = OpSpec(
    signature=swiglu,
    inputs=(
        Input("gate", "... intermediate_size", FLOATING),
        Input("up", "... intermediate_size", ("gate",)),
    ),
    outputs=(Output("y", "... intermediate_size", "gate"),),
    reference=reference,
    reference_vjp=reference_vjp,
    cases=(
        *(case(3, size) for size in (1, 15, 16, 17, 31, 33, 64, 127)),
        case(1, 1),
        case(37),
        case(2, 5, 48),
        case(0, 16, name="no-rows"),
        case(4, 100, name="wide-gates", scale=20.0),
        Case("saturated-gates", saturated),
        case(7, 13824),
    ),
    invalid_cases=(
        invalid("up-size", r"up must be .* with intermediate_size = 8", up=np.ones((2, 7))),
        invalid("up-rows", r"up must be \[\.\.\., intermediate_size\]", up=np.ones((3, 8))),
        invalid("up-rank", r"up must be \[\.\.\., intermediate_size\]", up=np.ones(8)),
        invalid("up-integer", "up must be of dtype", up=np.ones((2, 8), dtype=np.int32)),
        invalid("up-none", "up must be a tensor", TypeError, up=None),
        invalid("gate-scalar", r"gate must be \[\.\.\., intermediate_size\]", gate=np.ones(())),
        invalid("gate-integer", "gate must be of dtype float32", gate=np.ones((2, 8), dtype=np.int64)),
    ),
    tolerance=Tolerance(
        forward=Epsilons(
            {"float32": 4, "bfloat16": 0.51, "float16": 0.51},
            "exp within 2 ULP, an addition, a division and two products at half an epsilon each: 4. In 16 bits only "
            "the output's rounding is visible.",
        ),
        backward=Epsilons(
            {"float32": 12, "bfloat16": 0.55, "float16": 0.55},
            "1 - s is off by half an epsilon of 1 and is multiplied by g, up to 17, beyond which it vanishes: 8.5; the "
            "sigmoid and four products: 3.5.",
        ),
    ),
    cost=cost,
    benchmarks=(
        Benchmark(case(2048, 13824), cold=True),
        Benchmark(case(2048, 5120), cold=True),
        *(Benchmark(case(rows, 13824)) for rows in (1, 8, 64)),
    ),
    amp="keep",
    source="Shazeer 2020, arXiv:2002.05202, section 2",
)
