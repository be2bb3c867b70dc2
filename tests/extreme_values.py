"""Calls whose results are ordinary numbers though squares, sums or exponentials on the way to them leave float32.

No dtype's spec names them: float16 holds few of these inputs, and a vendor's own op promises none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import fusionkit as fk
from fusionkit import parity
from fusionkit.comparison import grad_outputs, listed
from fusionkit.spec import Case

WIDE = ("float32", "bfloat16")  # float16 ends at 65504


@dataclass(frozen=True)
class Extreme:
    """A case of an op, the dtypes that hold its inputs, and the size of the gradients that come in."""

    op: str
    case: Case
    dtypes: tuple[str, ...] = WIDE
    gradient: float = 1.0


def norm(op, scale, gradient=1.0, **scalars):
    def arguments(rng):
        made = {"x": scale * rng.uniform(0.5, 1.0, (3, 40)) * rng.choice([-1, 1], (3, 40))}
        if op == "fusion_add_rms_norm":
            made["residual"] = scale * rng.uniform(-0.5, 0.5, (3, 40))
        return made | {"weight": 1 + 0.1 * rng.standard_normal(40), **scalars}

    words = "".join(f", {name} {value:g}" for name, value in scalars.items())
    return Extreme(op, Case(f"rows of {scale:g}, gradients of {gradient:g}{words}", arguments), WIDE, gradient)


def norms(op):
    for scale in (1e18, 1e20, 3e37, 2e38):
        yield norm(op, scale)
        yield norm(op, scale, epsilon=0.0)
    for scale in (1e-20, 1e-23, 1e-30):
        yield norm(op, scale)
        for epsilon in (0.0, 1e-30, 1e-38):
            yield norm(op, scale, epsilon=epsilon)
    # The gradients of x are as large as those that come in are beside it.
    yield norm(op, 1e-39, gradient=1e-10, epsilon=0.0)
    yield norm(op, 1e3, gradient=5e37)


def gates(depth, up, gradient=1.0):
    def arguments(rng):
        return {"gate": depth * rng.uniform(1.0, 1.01, (3, 40)), "up": up * rng.uniform(0.5, 1.0, (3, 40))}

    return Extreme(
        "swiglu", Case(f"gates of {depth:g}, up {up:g}, gradients of {gradient:g}", arguments), WIDE, gradient
    )


def swiglus():
    for depth in (-60.0, -80.0, -88.0, -90.0, -103.0, -120.0, -150.0, -170.0):
        yield gates(depth, 1e38)
        yield gates(depth, 1e30, gradient=1e7)
    yield gates(-90.0, 1.0)
    yield gates(-20.0, 1e21, gradient=1e21)
    yield gates(-90.0, 1e30, gradient=1e30)
    yield gates(1e-39, 1e38)
    yield gates(-1e-42, 1e38)
    yield gates(1e30, 1e-30)


def logits(words, weight, label=0, dtypes=WIDE):
    """Tokens of one element 1, so that the weight's columns are the logits."""
    weight = np.array([weight], dtype=np.float64)

    def arguments(rng):
        return {"x": np.ones((2, 1)), "weight": weight, "labels": np.full(2, label)}

    return Extreme("fused_linear_cross_entropy", Case(f"logits {words}, label {label}", arguments), dtypes)


def shared_offset(offset, dtypes):
    """What all columns of the weight have in common drops out of loss and gradient of x."""

    def arguments(rng):
        x, weight = rng.standard_normal((5, 16)), rng.standard_normal((16, 37))
        return {"x": x, "weight": weight + offset, "labels": rng.integers(0, 37, 5)}

    return Extreme("fused_linear_cross_entropy", Case(f"columns that share {offset:g}", arguments), dtypes)


def losses():
    for size in (1e8, -1e8, 1e20, 3e38, -3e38):
        for count in (1, 2):  # the probabilities 1 and 1/2 are exact: dx, their sum times the weight, is 0
            yield logits(f"{count} of {size:g}", [size] * count)
    for label in (0, 1, 2):
        yield logits("88, 88.5, 89", [88.0, 88.5, 89.0], label, (*WIDE, "float16"))
    yield logits("0 and -3e38", [0.0, -3e38])
    yield logits("0 and -1e38", [0.0, -1e38], label=1)
    yield logits("3e38 and 0", [3e38, 0.0])
    yield shared_offset(8.0, ("bfloat16", "float16"))
    yield shared_offset(60.0, ("bfloat16", "float16"))


def step(words, grad, moments=0.0, **scalars):
    def arguments(rng):
        made = {"grad": grad * rng.uniform(0.5, 1.0, 37), "param": np.zeros(37)}
        made |= {"moment1": moments * made["grad"], "moment2": np.zeros(37)}
        return made | {"learning_rate": 1e-2, "beta1_power": 0.9, "beta2_power": 0.999, **scalars}

    return Extreme("fused_adamw", Case(words, arguments), ("float32",))


def steps():
    yield step("gradients of 1e20", 1e20)
    yield step("gradients of 3e20, scaled by 0.5", 3e20, grad_scale=0.5)
    yield step("gradients of 1e-20", 1e-20)
    yield step("gradients of 5e-37, small rate", 5e-37, learning_rate=1e-5)


def rotations():
    for scale in (2e38, 1e-39):

        def arguments(rng, scale=scale):
            angle = rng.uniform(0, 1, (5, 8))
            q, k = (scale * rng.uniform(-1, 1, (2, 5, 3, 16)) for _ in "qk")
            return {"q": q, "k": k, "cos": np.cos(angle), "sin": np.sin(angle)}

        yield Extreme("fusion_rope", Case(f"rotation of {scale:g}", arguments))


EXTREMES = (
    *norms("fusion_rms_norm"),
    *norms("fusion_add_rms_norm"),
    *swiglus(),
    *losses(),
    *steps(),
    *rotations(),
)


def named(op, name):
    return next(extreme for extreme in EXTREMES if (extreme.op, extreme.case.name) == (op, name))


def check(op, name, dtype, backend, route):
    """parity.check, with gradients of the case's own size."""
    extreme = named(op, name)

    def sized(*outputs):
        grads = grad_outputs(*outputs)
        made = tuple(np.asarray(grad * extreme.gradient, dtype=grad.dtype) for grad in listed(grads))
        return made if isinstance(grads, tuple) else made[0]

    parity.check(getattr(fk, op), extreme.case, dtype, backend, route, grads_of=sized)
