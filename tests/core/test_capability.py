"""Predicates: verdicts, reasons and the values at their edges."""

from __future__ import annotations

import pytest

from fusionkit.call import Call
from fusionkit.capability import (
    AllOf,
    AnyOf,
    Between,
    ForwardOnly,
    InverseRoot,
    MultipleOf,
    Not,
    OneOf,
    Present,
    SameSize,
    When,
)
from fusionkit.ops import load_spec
from fusionkit.spec import TensorSpec


def call(q_len=4, kv_len=4, head_dim=64, training=False, **values):
    q = TensorSpec((1, q_len, 2, head_dim), "float16")
    k = TensorSpec((1, kv_len, 2, head_dim), "float16")
    defaults = {name: p.default for name, p in load_spec("flash_attention").parameters.parameters.items()}
    defaults = {name: value for name, value in defaults.items() if name not in ("q", "k", "v")}
    made = Call(load_spec("flash_attention"), {"q": q, "k": k, "v": k}, defaults | values, "paddle", "toy:0", training)
    made.check()
    return made


@pytest.mark.parametrize(
    "predicate, arguments, answer, reason",
    [
        (MultipleOf("head_dim", 64), {}, "yes", None),
        (MultipleOf("head_dim", 64), {"head_dim": 65}, "no", "head_dim must be a multiple of 64, got 65"),
        (MultipleOf("head_dim", 64), {"head_dim": -1}, "unknown", None),
        (Between("kv_len", 4, 5), {}, "yes", None),
        (Between("kv_len", 5, None), {}, "no", "kv_len must be at least 5, got 4"),
        (Between("kv_len", None, 4), {}, "no", "kv_len must be below 4, got 4"),
        (OneOf("q.dtype", ("float16", "bfloat16")), {}, "yes", None),
        (OneOf("causal", (False,)), {"causal": True}, "no", "causal must be False, got True"),
        (SameSize("q_len", "kv_len"), {"kv_len": 5}, "no", "q_len and kv_len must be the same size, got 4 and 5"),
        (SameSize("q_len", "kv_len"), {"kv_len": -1}, "unknown", None),
        (Present("attn_mask"), {}, "no", "attn_mask is required"),
        (InverseRoot("scale", "head_dim"), {}, "yes", None),
        (InverseRoot("scale", "head_dim"), {"scale": 0.125}, "yes", None),
        (InverseRoot("scale", "head_dim"), {"scale": 0.12}, "no", "scale must be 1 / sqrt(head_dim), got 0.12"),
        (InverseRoot("scale", "head_dim"), {"scale": 0.125, "head_dim": -1}, "unknown", None),
        (OneOf("q.num_heads", (1,)), {}, "no", "q.num_heads must be 1, got 2"),
        (ForwardOnly(), {"training": True}, "no", "forward only: gradients are wanted"),
        (Not(OneOf("causal", (True,)), "causal is not offered"), {"causal": True}, "no", "causal is not offered"),
        (Not(MultipleOf("head_dim", 64), "even sizes only"), {"head_dim": -1}, "unknown", None),
        (When(OneOf("causal", (True,)), SameSize("q_len", "kv_len")), {"kv_len": 5}, "yes", None),
        (When(OneOf("causal", (True,)), SameSize("q_len", "kv_len")), {"kv_len": 5, "causal": True}, "no", None),
        (When(MultipleOf("head_dim", 64), Between("kv_len", 9, None)), {"head_dim": -1}, "unknown", None),
        (AnyOf((MultipleOf("head_dim", 48), MultipleOf("head_dim", 64))), {}, "yes", None),
        (AnyOf((MultipleOf("head_dim", 48), MultipleOf("head_dim", 5))), {}, "no", None),
        (AllOf((MultipleOf("head_dim", 48), MultipleOf("head_dim", 64))), {}, "no", None),
    ],
)
def test_verdict(predicate, arguments, answer, reason):
    verdict = predicate.judge(call(**arguments))
    assert verdict.answer == answer
    assert bool(verdict) == (answer == "yes")
    if reason is not None:
        assert verdict.reasons == (reason,)


def test_a_condition_reads_as_one():
    given = When(Present("attn_mask"), OneOf("attn_mask.dtype", ("bool",)))
    assert str(given) == "attn_mask.dtype must be bool (when attn_mask is given)"
    square = When(OneOf("causal", (True,)), SameSize("q_len", "kv_len"))
    assert str(square) == "q_len and kv_len must be the same size (when causal is True)"


def test_boundaries_are_on_both_sides():
    assert MultipleOf("head_dim", 64).boundaries() == ((64, 128), (63, 65))
    assert Between("k", 256, 65535).boundaries() == ((256, 65534), (255, 65535))
    assert OneOf("world_size", (2, 4, 8)).boundaries() == ((2, 4, 8), (1, 3, 5, 7, 9))


def test_a_misspelt_subject_is_found():
    with pytest.raises(KeyError, match="flash_attention has no axis or argument 'head_dimm'"):
        MultipleOf("head_dimm", 2).judge(call())
