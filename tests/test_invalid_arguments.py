"""Bad arguments: each op names the argument and the rule, on every backend and way in."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest

import fusionkit as fk
from fusionkit import arguments as arguments_of
from fusionkit import parity
from fusionkit.frameworks import load
from fusionkit.ops import OP_NAMES, load_spec
from fusionkit.spec import Case
from tests import prose


def cases():
    for name in OP_NAMES:
        for case in load_spec(name).invalid_cases:
            for backend in ("cpu", "eager"):
                for route in ("numpy", "paddle"):
                    yield pytest.param(name, case, backend, route, id=f"{name}-{case.name}-{backend}-{route}")


def taken(op, case, route):
    """The case's arguments as they go in on a route."""
    arguments = parity.arguments_of(op.spec, Case(case.name, case.arguments), "float32")
    if isinstance(arguments[op.spec.inputs[0].name], list):  # all ranks' arguments, where an invalid call is one rank's
        arguments = arguments_of.of_rank(op.spec, arguments, 0)
    if route == "numpy":
        return arguments
    from_numpy = load("paddle").from_numpy
    return {n: from_numpy(v, "cpu") if isinstance(v, np.ndarray) else v for n, v in arguments.items()}


def remember(op, bad, backend, route):
    """Make valid calls whose arguments have the names of the bad one's, so that their plans fit it."""
    if op.spec.collective:
        return  # calls of these are not remembered
    given = taken(op, bad, route)
    names = {name for name, value in given.items() if value is not None}
    for arguments in (taken(op, case, route) for case in op.spec.cases if not case.llama):
        if names <= arguments.keys():
            # Without its scalars a case may be invalid: then it leaves nothing to remember.
            with fk.use_backend(backend), contextlib.suppress(ValueError):
                op(**{name: arguments[name] for name in given})


@pytest.mark.parametrize("remembered", [False, True], ids=["first", "remembered"])
@pytest.mark.parametrize("name, case, backend, route", list(cases()))
def test_refused_by_name(name, case, backend, route, remembered):
    """Also when decisions of earlier calls are remembered, and the kernel meets the bad argument before the core."""
    op = fk.Op(name)
    if remembered:
        remember(op, case, backend, route)
    arguments = taken(op, case, route)
    with fk.use_backend(backend), pytest.raises(case.error) as caught:
        op(**arguments)
    text = str(caught.value)
    assert text.startswith(f"{name}: ") and re.search(case.match, text), text
    assert not prose.long_sentences(text)


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_wrong_size_after_a_valid_call_gets_the_same_error(backend):
    """The second call takes the remembered decision; the kernel, not the core, sees the wrong size first."""
    x, weight = np.ones((2, 8), np.float32), np.ones(8, np.float32)
    with fk.use_backend(backend):
        fk.fusion_rms_norm(x, weight)
        with pytest.raises(ValueError, match=r"fusion_rms_norm: weight must be \[hidden_size\] with hidden_size = 8"):
            fk.fusion_rms_norm(x, weight[:7])


def test_tensors_of_two_frameworks_are_refused():
    paddle = pytest.importorskip("paddle")
    with pytest.raises(
        TypeError, match="weight must be a numpy tensor like the arguments before it, got one of paddle"
    ):
        fk.fusion_rms_norm(np.ones((2, 8), np.float32), paddle.ones([8]))


def test_missing_argument_shows_the_signature():
    with pytest.raises(TypeError, match=r"fusion_rms_norm: missing .*'weight'.*\(x, weight, \*, epsilon=1e-05\)"):
        fk.fusion_rms_norm(np.ones((2, 8), np.float32))


@pytest.mark.parametrize("remembered", [False, True], ids=["first", "remembered"])
@pytest.mark.parametrize("route", ["numpy", "paddle"])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("name", [name for name in OP_NAMES if len(load_spec(name).mutates) > 1])
def test_one_tensor_in_the_place_of_two_that_are_written_is_refused(name, backend, route, remembered):
    op = fk.Op(name)
    first, *_, last = op.spec.mutates
    arguments = taken(op, op.spec.cases[0], route)
    with fk.use_backend(backend):
        if remembered:
            op(**arguments)
        with pytest.raises(ValueError, match=f"{name}: {last} must be another tensor than {first}, got the same one"):
            op(**arguments | {last: arguments[first]})


@pytest.mark.parametrize("remembered", [False, True], ids=["first", "remembered"])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_float_mask_that_requires_a_gradient_is_refused_and_not_forgotten_in_silence(backend, remembered):
    paddle = load("paddle").paddle
    op, q, mask = fk.Op("flash_attention"), paddle.ones([1, 4, 2, 8]), paddle.zeros([1, 1, 4, 4])
    learned = paddle.zeros([1, 1, 4, 4])
    learned.stop_gradient = False
    with fk.use_backend(backend):
        if remembered:
            op(q, q, q, attn_mask=mask)
        with pytest.raises(ValueError, match=r"attn_mask must be a tensor without a gradient, .*attn_mask.detach\(\)"):
            op(q, q, q, attn_mask=learned)
        assert op(q, q, q, attn_mask=learned.detach()).shape == q.shape
        with paddle.no_grad():
            assert op(q, q, q, attn_mask=learned).shape == q.shape
