"""The oracles themselves: hand-written gradients against finite differences, and specs against their own rules."""

from __future__ import annotations

import numpy as np
import pytest

from fusionkit import arguments as arguments_of
from fusionkit import oracle, parity
from fusionkit.call import describe
from fusionkit.dtypes import INTEGER
from fusionkit.ops import OP_NAMES, load_spec

SPECS = [load_spec(name) for name in OP_NAMES]
STEP = 1e-6


def gradient_cases():
    for spec in SPECS:
        if spec.reference_vjp is not None:
            for case in spec.all_cases:
                if not (case.llama or case.quantized):
                    yield pytest.param(spec, case, id=f"{spec.name}-{case.name}")


def like(value, make):
    """`make(array)` for each array of a result: of one, a tuple of several, or a list of ranks."""
    return type(value)(like(each, make) for each in value) if isinstance(value, tuple | list) else make(value)


def leaves(value):
    return [leaf for each in value for leaf in leaves(each)] if isinstance(value, tuple | list) else [value]


def moved(value, size, direction):
    if isinstance(value, list):
        return [moved(*pair) for pair in zip(value, [size] * len(value), direction, strict=True)]
    return value + size * direction


@pytest.mark.parametrize("spec, case", list(gradient_cases()))
def test_gradients_agree_with_central_differences(spec, case):
    """Along random directions: the change of <outputs, grad_outputs> is <gradient, direction>."""
    arguments = parity.arguments_of(spec, case, "float64")
    arguments = {name: oracle.to_float64(value) for name, value in arguments.items()}
    outputs = oracle.reference(spec, arguments)
    rng = np.random.default_rng(1)
    grads = like(outputs, lambda o: rng.standard_normal(np.shape(o)))
    if any(output.replicated for output in spec.outputs):
        grads = [grads[0]] * len(grads)
    gradients = oracle.reference_vjp(spec, arguments, grads)

    def scalar(arguments):
        # Counts do not change; -inf (the log-sum-exp of an empty row) has no gradient.
        pairs = list(zip(leaves(oracle.reference(spec, arguments)), leaves(grads), strict=True))
        if any(output.replicated for output in spec.outputs):
            pairs = pairs[:1]  # what all ranks compute alike counts once
        return sum(
            float(np.sum(np.where(np.isfinite(r), r, 0) * g))
            for r, g in pairs
            if np.asarray(r).dtype.name not in INTEGER
        )

    for name, gradient in gradients.items():
        direction = like(gradient, lambda g: rng.standard_normal(g.shape))
        size = STEP * max(1.0, *(float(np.max(np.abs(a), initial=0.0)) for a in leaves(arguments[name])))
        ahead, behind = (
            scalar({**arguments, name: moved(arguments[name], sign * size, direction)}) for sign in (1, -1)
        )
        terms = [g * d for g, d in zip(leaves(gradient), leaves(direction), strict=True)]
        numeric, analytic = (ahead - behind) / (2 * size), float(sum(map(np.sum, terms)))
        # Central differences: step^2 of truncation and epsilon/step of cancellation, both near 1e-9 of the terms.
        scale = float(sum(np.sum(np.abs(term)) for term in terms)) + abs(scalar(arguments)) + 1e-6
        assert abs(numeric - analytic) <= 2e-6 * scale, name


@pytest.mark.parametrize("spec", SPECS, ids=OP_NAMES)
def test_spec_is_complete(spec):
    assert len(spec.cases) >= 10 and len(spec.invalid_cases) >= 5
    assert any(case.llama for case in spec.cases)
    names = [case.name for case in spec.all_cases]
    assert len(set(names)) == len(names)
    text = spec.signature.__doc__
    assert "Args:" in text and "Returns:" in text and "Raises:" in text and "Source:" in text
    for bound in (spec.tolerance.forward, spec.tolerance.backward):
        assert bound is None or len(bound.reason) > 20


@pytest.mark.parametrize("spec", SPECS, ids=OP_NAMES)
def test_cost_is_positive_for_the_largest_case(spec):
    case = next(case for case in spec.cases if case.llama)
    made = arguments_of.of_rank(spec, parity.arguments_of(spec, case, "float32"), 0)
    bound, framework = arguments_of.bind(spec, (), made)
    call = describe(spec, bound, framework)
    forward, both = (spec.cost({**call.dims, **bound}, 4, training) for training in (False, True))
    assert forward.flops > 0 and forward.bytes_read > 0 and forward.bytes_written > 0
    assert spec.reference_vjp is None or (both.flops > forward.flops and both.bytes_written > forward.bytes_written)
