"""A kernel that leaves out parameters serves the calls that have their defaults, and refuses the rest by name."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, get_type_hints

import numpy as np
import pytest

import fusionkit as fk
from fusionkit import cli, kernel_function, registry
from fusionkit.errors import PluginError
from fusionkit.spec import TensorSpec
from tests.boundaries import edges

Q = np.ones((1, 3, 2, 8), np.float32)
MASK, BOUNDS = np.ones((1, 1, 3, 3), bool), np.full((1, 1, 3, 2), 3, np.int32)
OTHERS = {"attn_mask": MASK, "startend_row_indices": BOUNDS, "scale": 0.3, "return_lse": True}
REASONS = {
    "attn_mask": "attn_mask is not supported: it must be None, got [1, 1, 3, 3] bool",
    "startend_row_indices": "startend_row_indices is not supported: it must be None, got [1, 1, 3, 2] int32",
    "scale": "scale is not supported: it must be None, got 0.3",
    "return_lse": "return_lse is not supported: it must be False, got True",
}
DEFAULTS = {"causal": False, "attn_mask": None, "startend_row_indices": None, "scale": None, "return_lse": False}


def backend(op, *functions, vjp=None):
    named = {
        framework: f"tests.core.toy:{name}" for framework, name in zip(("numpy", "paddle"), functions, strict=False)
    }
    vjp = vjp and f"tests.core.toy:{vjp}"
    return fk.Backend("a_toy", ("cpu",), {op: fk.Kernel(named, vjp=vjp, checks_sizes=True)})


@pytest.fixture
def attention(prefer):
    prefer(backend("flash_attention", "causal_attention", vjp="causal_attention_vjp"))
    return fk.Op("flash_attention")


def ran_on_toy(result):
    return isinstance(result, str) and result == "toy ran"


@pytest.mark.parametrize("given", [{}, {"causal": True}, DEFAULTS, {"return_lse": False}, {"attn_mask": None}], ids=str)
def test_defaults_may_be_given_or_not(attention, given):
    assert ran_on_toy(attention(Q, Q, Q, **given)) and ran_on_toy(attention(Q, Q, Q, **given))
    assert ran_on_toy(attention.bind(Q, Q, Q, **given)(Q, Q, Q, **given))
    assert fk.ledger()[("flash_attention", "a_toy", "chosen")] == 2


@pytest.mark.parametrize("name", OTHERS)
def test_another_value_is_refused_by_name(attention, name):
    given = {name: OTHERS[name]}
    explanation = attention.explain(Q, Q, Q, **given)
    assert explanation.chosen == "cpu" and explanation.reason == f"fallback: a_toy: {REASONS[name]}"
    with fk.use_backend("a_toy"), pytest.raises(fk.NoBackendError) as caught:
        attention(Q, Q, Q, **given)
    assert f"\n  a_toy: {REASONS[name]}" in str(caught.value)


@pytest.mark.parametrize("name", OTHERS)
def test_a_remembered_decision_lets_no_other_value_through(attention, name):
    default = {name: DEFAULTS[name]}
    for given, on_toy in (({}, True), (default, True), ({name: OTHERS[name]}, False), (default, True), ({}, True)):
        for _ in range(2):
            assert ran_on_toy(attention(Q, Q, Q, **given)) == on_toy


@pytest.mark.parametrize("name", OTHERS)
def test_a_bound_kernel_refuses_another_value(attention, name):
    bound = attention.bind(Q, Q, Q)
    with pytest.raises(ValueError, match=f"flash_attention: {name} must be (None|False) for the kernel that was bound"):
        bound(Q, Q, Q, **{name: OTHERS[name]})


def test_a_bound_kernel_takes_the_default_and_nothing_like_it(attention):
    bound = attention.bind(Q, Q, Q)
    for value in (0, np.zeros(2), np.False_):
        with pytest.raises(ValueError, match="flash_attention: return_lse must be False for the kernel that was bound"):
            bound(Q, Q, Q, return_lse=value)


def test_a_positional_argument_is_looked_at_too(prefer):
    prefer(backend("fused_linear", "fused_linear"))
    op, x, bias = fk.Op("fused_linear"), np.ones((3, 3), np.float32), np.ones(3, np.float32)
    for _ in range(2):
        assert ran_on_toy(op(x, x)) and ran_on_toy(op(x, x, None)) and ran_on_toy(op(x, x, bias=None))
        assert not ran_on_toy(op(x, x, bias)) and not ran_on_toy(op(x, x, bias=bias))
    with pytest.raises(ValueError, match="fused_linear: bias must be None for the kernel that was bound"):
        op.bind(x, x)(x, x, bias)


def test_gradients_are_asked_for_without_what_is_left_out(attention):
    with fk.use_backend("a_toy"):
        assert attention.vjp(Q, Q, Q, grad_outputs=Q)["k"] is Q


def test_the_table_and_the_boundary_calls_have_it(install, capsys):
    toys = backend("flash_attention", "causal_attention")
    install(toys)
    cli.main(["ops", "--conditions"])
    out = capsys.readouterr().out
    assert "yes, no attn_mask or startend_row_indices or scale or return_lse" in out
    assert "\n  return_lse is not supported: it must be False\n" in out
    sides = {(edge.predicate.argument, edge.accepted) for edge in edges(toys) if hasattr(edge.predicate, "argument")}
    assert sides == {(name, side) for name in OTHERS for side in (True, False)}
    for edge in edges(toys):
        made = {name: _on_cpu(value) for name, value in edge.arguments.items()}
        answers = {name: answer for name, answer, _ in fk.Op(edge.op).explain(**made).candidates}
        assert (answers["a_toy"] == "yes") == edge.accepted, edge


def _on_cpu(value):
    return TensorSpec(value.shape, value.dtype, "cpu") if isinstance(value, TensorSpec) else value


def test_what_has_no_default_cannot_be_left_out():
    with pytest.raises(PluginError) as caught:
        registry.check("a_toy", backend("flash_attention", "attention_without_keys"))
    assert "tests.core.toy:attention_without_keys must have the signature of flash_attention, (q, k, v, *" in str(
        caught.value
    )
    assert "got (q, v, *, causal=False). Only parameters with a default can be left out" in str(caught.value)


def test_functions_of_one_kernel_leave_out_the_same():
    with pytest.raises(PluginError) as caught:
        registry.check("a_toy", backend("flash_attention", "causal_attention", "plain_attention"))
    assert "plain_attention must leave out the same parameters of flash_attention as tests.core.toy:causal" in str(
        caught.value
    )


def with_window(function):
    """An op's function with one more parameter."""

    def widened(*args, **kwargs): ...

    signature = inspect.signature(function)
    window = inspect.Parameter("window", inspect.Parameter.KEYWORD_ONLY, default=None)
    widened.__signature__ = signature.replace(parameters=[*signature.parameters.values(), window])
    widened.__annotations__ = {**get_type_hints(function), "window": Any}
    return widened


def test_a_new_parameter_touches_the_spec_and_the_kernels_that_have_it(monkeypatch):
    """Every kernel of flash_attention stays right as it is, and leaves the new parameter out."""
    old = fk.Op("flash_attention").spec
    new = dataclasses.replace(old, signature=with_window(old.signature))
    kernels = [backend.kernels.get("flash_attention") for backend in registry.loaded()]
    monkeypatch.setattr(kernel_function, "load_spec", lambda op: new)
    served = [each for kernel in kernels if kernel for each in (kernel, *kernel.for_framework.values())]
    assert len(served) >= 7
    for kernel in served:
        assert kernel_function.left_out.__wrapped__(kernel, "flash_attention")[-1] == "window"
