"""A kept reference is the one of the same spec, arguments and roundings, and is computed once."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import fusionkit as fk
from fusionkit import oracle, parity
from tests import kept_references

SPEC = fk.swiglu.spec
MADE = parity.arguments_of(SPEC, SPEC.cases[0], "bfloat16")


@pytest.fixture
def asked():
    """(the reference that is kept, what has been computed)."""
    computed = []

    def compute(*given):
        computed.append(given)
        return oracle_itself(*given)

    oracle_itself = oracle.reference
    return kept_references.kept(compute), computed


def test_equal_arguments_are_computed_once_and_others_anew(asked):
    ask, computed = asked
    exact, bfloat16 = ask(SPEC, MADE), oracle.rounding_to("bfloat16")
    other = MADE | {"gate": MADE["gate"] + 1}
    given = [(SPEC, MADE, bfloat16), (SPEC, other), (dataclasses.replace(SPEC, reference=lambda **_: exact + 1), MADE)]
    for arguments in given:
        assert np.array_equal(ask(*arguments), oracle.reference(*arguments)) and not np.array_equal(
            ask(*arguments), exact
        )
    copies = {name: value.copy() for name, value in MADE.items()}
    assert np.array_equal(ask(SPEC, copies), exact) and len(computed) == 1 + len(given)


def test_the_last_answers_are_kept(asked):
    ask, computed = asked
    many = [MADE | {"gate": MADE["gate"] + number} for number in range(kept_references.NUM_KEPT + 1)]
    for each in [*many, *many[1:], many[0]]:
        ask(SPEC, each)
    assert len(computed) == len(many) + 1


def test_large_arguments_are_not_kept(asked):
    ask, computed = asked
    large = {name: np.ones(kept_references.LARGEST, np.float32) for name in MADE}
    for _ in range(2):
        ask(SPEC, large)
    assert len(computed) == 2


def test_what_a_reference_writes_is_written_each_time():
    spec = SimpleNamespace(reference=None, reference_vjp=None, stored={}, mutates=("cache",))
    ask = kept_references.kept(lambda spec, made: made["cache"].__iadd__(1).sum())
    for _ in range(2):
        made = {"cache": np.zeros(3)}
        assert ask(spec, made) == 3 and made["cache"].sum() == 3


def test_a_reader_may_take_a_gradient_out(asked):
    spec = SimpleNamespace(reference=None, reference_vjp=None, stored={}, mutates=())
    ask = kept_references.kept(lambda spec, made: {"x": 1, "weight": 2})
    del ask(spec, {})["weight"]
    assert ask(spec, {}) == {"x": 1, "weight": 2}


def test_it_ends(asked):
    before = oracle.reference, oracle.reference_vjp
    end = kept_references.keep()
    assert oracle.reference is not before[0]
    end()
    assert (oracle.reference, oracle.reference_vjp) == before
