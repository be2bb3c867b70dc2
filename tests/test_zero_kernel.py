"""A kernel replaced by one that returns zeros is found out, and so is a backend that did not run."""

from __future__ import annotations

import numpy as np
import pytest

import fusionkit as fk
from fusionkit import comparison, kernel_function, parity
from fusionkit.comparison import ParityError
from tests.op_names import CPU_OPS


def zeros_like_outputs(function):
    def zeros(*args, **kwargs):
        result = function(*args, **kwargs)
        return tuple(np.zeros_like(r) for r in result) if isinstance(result, tuple) else np.zeros_like(result)

    return zeros


@pytest.mark.parametrize("name", CPU_OPS)
def test_zeros_instead_of_the_kernel_fail_parity(name, monkeypatch):
    real = kernel_function.resolve

    def resolve(reference):
        function = real(reference)
        return function if reference.endswith(":vjp") else zeros_like_outputs(function)

    monkeypatch.setattr(kernel_function, "resolve", resolve)
    op = fk.Op(name)
    case = next(case for case in op.spec.cases if not case.llama)
    with pytest.raises(ParityError, match="times its bound"):
        parity.check(op, case, "float32", "cpu", "numpy")


@pytest.mark.parametrize("name", [name for name in CPU_OPS if fk.Op(name).spec.reference_vjp])
def test_zeros_instead_of_the_gradient_fail_parity(name, monkeypatch):
    real = kernel_function.resolve

    def resolve(reference):
        function = real(reference)
        if not reference.endswith(":vjp"):
            return function
        return lambda *args, **kwargs: {
            key: None if g is None else np.zeros_like(g) for key, g in function(*args, **kwargs).items()
        }

    monkeypatch.setattr(kernel_function, "resolve", resolve)
    op = fk.Op(name)
    case = next(case for case in op.spec.cases if "17" in case.name or "D16" in case.name)
    with pytest.raises(ParityError, match="times its bound"):
        parity.check(op, case, "float32", "cpu", "numpy")


def test_nan_and_infinity_are_never_right():
    bound = fk.fusion_rms_norm.spec.tolerance.forward
    want = np.array([1.0, 2.0])
    for bad in (np.nan, np.inf):
        assert comparison.compare("y", bound, want, np.array([1.0, bad], np.float32), want, "float32").share == np.inf


def test_the_composition_is_made_for_the_bounds_that_read_it():
    """It takes as long as the reference in float64."""
    for name, made in (("swiglu", False), ("flash_attention", True)):
        bound, roundings = fk.Op(name).spec.tolerance.forward, []
        comparison.composition(bound, "bfloat16", roundings.append, None)
        assert len(roundings) == made


def test_another_backend_than_asked_for_fails_parity(monkeypatch):
    """Every call lands on eager; parity for cpu must not pass on its results."""
    op = fk.Op("fusion_rms_norm")
    monkeypatch.setattr(parity, "use_backend", lambda backend: fk.use_backend("eager"))
    with pytest.raises(ParityError, match="cpu was asked for and did not run"):
        parity.check(op, op.spec.cases[0], "float32", "cpu", "numpy")
