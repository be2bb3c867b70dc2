"""fused_adamw: the spec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusionkit.dtypes import FLOATING
from fusionkit.errors import argument_error
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


def fused_adamw(
    param: Any,
    grad: Any,
    moment1: Any,
    moment2: Any,
    *,
    learning_rate: float,
    beta1_power: float,
    beta2_power: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    grad_scale: float = 1.0,
) -> Any:
    """One AdamW update of one parameter, in place, in one pass over memory. Never differentiated.

        g = grad_scale * grad
        moment1 = beta1 * moment1 + (1 - beta1) * g
        moment2 = beta2 * moment2 + (1 - beta2) * g^2
        update = (moment1 / (1 - beta1_power)) / (sqrt(moment2 / (1 - beta2_power)) + epsilon)
        param = (1 - learning_rate * weight_decay) * param - learning_rate * update

    Args:
        param: [...] float32; updated in place.
        grad: [...] float32 / bfloat16 / float16.
        moment1: [...] float32; updated in place.
        moment2: [...] float32, at least 0; updated in place.
        learning_rate: at least 0.
        beta1_power: beta1^step, step = 1 at the first update.
        beta2_power: beta2^step.
        beta1: in [0, 1), share of moment1 that is kept.
        beta2: in [0, 1), as beta1.
        epsilon: above 0, added to the root.
        weight_decay: at least 0.
        grad_scale: factor of the gradient, at least 0; clipping by the global norm costs no pass of its own.

    Returns:
        (param, moment1, moment2): the tensors that came in. Computed in float32.

    Raises:
        ValueError: a shape or dtype does not fit, a scalar is out of its range.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, with the decay times the learning rate.
    """


def check_scalars(values: Mapping[str, Any]) -> None:
    """Raise for a scalar out of range; values by parameter name."""
    for name in ("learning_rate", "weight_decay", "grad_scale"):
        _require(values[name] >= 0 and math.isfinite(values[name]), name, "at least 0 and finite", values[name])
    for name in ("beta1", "beta2", "beta1_power", "beta2_power"):
        _require(0 <= values[name] < 1, name, "in [0, 1)", values[name])
    _require(values["epsilon"] > 0 and math.isfinite(values["epsilon"]), "epsilon", "above 0", values["epsilon"])


def _require(condition: bool, name: str, rule: str, got: object) -> None:
    if not condition:
        raise argument_error("fused_adamw", name, rule, got)


def reference(
    param: Array,
    grad: Array,
    moment1: Array,
    moment2: Array,
    *,
    learning_rate: float,
    beta1_power: float,
    beta2_power: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    grad_scale: float = 1.0,
    rounding: Rounding = exact,
) -> tuple[Array, Array, Array]:
    """Writes param, moment1 and moment2, as the op does."""
    scaled = rounding(grad * grad_scale)
    moment1[...] = rounding(beta1 * moment1 + (1 - beta1) * scaled)
    moment2[...] = rounding(beta2 * moment2 + (1 - beta2) * scaled**2)
    denominator = rounding(np.sqrt(moment2 / (1 - beta2_power)) + epsilon)
    update = rounding(moment1 / (1 - beta1_power) / denominator)
    param[...] = rounding((1 - learning_rate * weight_decay) * param - learning_rate * update)
    return param, moment1, moment2


def case(name: str, *shape: int, llama: bool = False, step: int = 3, fresh: bool = False, **scalars: float) -> Case:
    """Gradients of 0.1; `fresh` moments are zero, as before the first step."""
    beta1, beta2 = scalars.get("beta1", 0.9), scalars.get("beta2", 0.999)

    def arguments(rng: np.random.Generator) -> dict[str, Any]:
        moments = [np.zeros(shape)] * 2 if fresh else [rng.standard_normal(shape), rng.random(shape)]
        return {
            "param": rng.standard_normal(shape),
            "grad": 0.1 * rng.standard_normal(shape),
            "moment1": 0.1 * moments[0],
            "moment2": 0.01 * moments[1],
            "learning_rate": 1e-2,
            "beta1_power": beta1**step,
            "beta2_power": beta2**step,
            **scalars,
        }

    return Case(name, arguments, llama)


CASES = (
    *(case(str(size), size) for size in (1, 15, 16, 17, 31, 33, 4099)),
    case("0x5", 0, 5),
    case("3x4x7", 3, 4, 7),
    case("40001-two-shares", 40001),
    case("131x257-first-step", 131, 257, step=1, fresh=True),
    case("67-late-step", 67, step=100_000),
    case("67-scaled", 67, grad_scale=0.037),
    case("67-scale-0", 67, grad_scale=0.0),
    case("67-no-decay", 67, weight_decay=0.0),
    case("67-large-decay", 67, weight_decay=0.5, learning_rate=0.3),
    case("67-rate-0", 67, learning_rate=0.0),
    case("67-Llama-betas", 67, beta1=0.9, beta2=0.95, epsilon=1e-5, weight_decay=0.1),
    case("67-no-momentum", 67, beta1=0.0, beta2=0.0),
    case("1024x5120", 1024, 5120, llama=True),
)


def invalid(name: str, match: str, error: type[Exception] = ValueError, **arguments: Any) -> InvalidCase:
    """Changes to a valid call."""
    valid: dict[str, Any] = {name: np.ones((4, 3)) for name in ("param", "grad", "moment1", "moment2")}
    scalars = {"learning_rate": 0.1, "beta1_power": 0.9, "beta2_power": 0.999}
    return InvalidCase(name, lambda rng: {**valid, **scalars, **arguments}, error, match)


INVALID_CASES = (
    invalid("grad-shape", r"grad must be \[\.\.\.\] with \.\.\. = \[4, 3\]", grad=np.ones((3, 4))),
    invalid("moment1-rank", r"moment1 must be \[\.\.\.\] with", moment1=np.ones(12)),
    invalid("moment2-shape", r"moment2 must be \[\.\.\.\] with", moment2=np.ones((4, 4))),
    invalid("param-dtype", "param must be of dtype float32", param=np.ones((4, 3), np.int64)),
    invalid("grad-dtype", "grad must be of dtype", grad=np.ones((4, 3), np.int32)),
    invalid("moment-dtype", "moment2 must be of dtype float32", moment2=np.ones((4, 3), np.float16)),
    invalid("grad-none", "grad must be a tensor", TypeError, grad=None),
    invalid("rate-negative", "learning_rate must be at least 0", learning_rate=-0.1),
    invalid("rate-nan", "learning_rate must be at least 0", learning_rate=math.nan),
    invalid("power-1", r"beta1_power must be in \[0, 1\)", beta1_power=1.0),
    invalid("beta2-1", r"beta2 must be in \[0, 1\)", beta2=1.0),
    invalid("epsilon-0", "epsilon must be above 0", epsilon=0.0),
    invalid("scale-inf", "grad_scale must be at least 0 and finite", grad_scale=math.inf),
)


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    """Four reads and three writes; the states are float32, the gradient has the dtype under test."""
    elements = dims["..."]
    return Cost(16.0 * elements, (12 + itemsize) * elements, 12.0 * elements)


FLOAT32 = ("float32",)

spec = OpSpec(
    signature=fused_adamw,
    inputs=(
        Input("param", "...", FLOAT32),
        Input("grad", "...", FLOATING, differentiable=False),
        Input("moment1", "...", FLOAT32),
        Input("moment2", "...", FLOAT32),
    ),
    outputs=(Output("param", "...", "param"), Output("moment1", "...", "moment1"), Output("moment2", "...", "moment2")),
    reference=reference,
    reference_vjp=None,
    cases=CASES,
    invalid_cases=INVALID_CASES,
    tolerance=Tolerance(
        forward=Epsilons(
            {"float32": 4},
            "moment1 is two products of rounded factors and a sum: 2 of its larger term; the update adds square root, "
            "division, their factors and a difference: 2 more.",
        ),
        backward=None,
    ),
    cost=cost,
    benchmarks=(Benchmark(case("5120x5120", 5120, 5120)),),
    amp="keep",
    source="Loshchilov and Hutter 2019, arXiv:1711.05101",
    check=lambda call: check_scalars(call.values),
    mutates=("param", "moment1", "moment2"),
)
