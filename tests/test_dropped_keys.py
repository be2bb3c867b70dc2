"""A key that a mask drops has no influence, whatever it holds: not on outputs, not on gradients, not on its neighbours.

Two documents in one sequence: what the second one holds must not reach the first one, however it is masked, and the
second one's own rows, which attend to it, must show it.
"""

from __future__ import annotations

import numpy as np
import pytest
from fusionkit_backends.cpu import runtime

import fusionkit as fk
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.ledger import ledger

FIRST, LENGTH, HEADS, KEY_HEADS, SIZE = 70, 131, 4, 2, 20  # documents of 70 and 61 tokens: both end within a tile
TOLERANCES = {"float32": 2e-5, "bfloat16": 4e-2, "float16": 6e-3}


def own_document(length, first=FIRST):
    document = np.arange(length) >= first
    return document[:, None] == document


def masks(causal, first=FIRST):
    """The same documents as each kind of mask."""
    seen = own_document(LENGTH, first)[None, None]
    ends = np.where(np.arange(LENGTH) < first, first, LENGTH)
    columns = [ends] if causal else [ends, np.where(np.arange(LENGTH) < first, 0, first)]
    rows = np.stack(columns, -1).astype(np.int32)[None, None]
    return {
        "bool": {"attn_mask": seen},
        "float32": {"attn_mask": np.where(seen, np.float32(0.5), np.float32(-np.inf))},
        "transposed float32": {"attn_mask": np.asfortranarray(np.where(seen, np.float32(0.5), np.float32(-np.inf)))},
        "bounds": {"startend_row_indices": rows},
    }


def inputs(dtype, bad=None, rows=slice(FIRST, LENGTH), names="kv"):
    """q, k, v and the gradients of out and lse; `bad` in place of these tokens of the named ones."""
    rng = np.random.default_rng(3)
    made = {}
    for name, heads in {"q": HEADS, "k": KEY_HEADS, "v": KEY_HEADS, "dout": HEADS}.items():
        made[name] = rng.standard_normal((1, LENGTH, heads, SIZE))
        if bad is not None and name in names:
            made[name][:, rows, :, ::3] = bad
        made[name] = made[name].astype(DTYPES[dtype])
    return made, rng.standard_normal((1, HEADS, LENGTH)).astype(np.float32)


def attend(backend, given, dlse, **mask):
    """out, lse and the gradients, as float64."""
    tensors = {name: given[name] for name in "qkv"}
    ledger().reset()
    with fk.use_backend(backend):
        out, lse = fk.flash_attention(**tensors, return_lse=True, **mask)
        grads = fk.flash_attention.vjp(**tensors, return_lse=True, **mask, grad_outputs=(given["dout"], dlse))
    assert {ran for _, ran, _ in ledger()} == {backend}
    results = {"out": out, "lse": lse.swapaxes(1, 2), **{f"d{name}": grad for name, grad in grads.items()}}
    return {name: np.asarray(value, np.float64) for name, value in results.items()}


@pytest.fixture(params=[*runtime.native().tested_isas(), "eager"])
def backend(request, native):
    """cpu on each target and model, and eager."""
    if request.param == "eager":
        return "eager"
    native.set_isa(request.param)
    return "cpu"


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("mask", masks(False))
@pytest.mark.parametrize("bad, names", [(np.nan, "k"), (np.nan, "v"), (np.inf, "kv"), (-np.inf, "qkv")])
def test_what_one_document_holds_does_not_reach_the_other(backend, dtype, causal, mask, bad, names):
    kind = masks(causal)[mask]
    want = attend(backend, *inputs(dtype), causal=causal, **kind)
    got = attend(backend, *inputs(dtype, bad, names=names), causal=causal, **kind)
    for name in want:
        np.testing.assert_allclose(
            got[name][:, :FIRST], want[name][:, :FIRST], rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype], err_msg=name
        )
    assert not np.isfinite(got["out"][:, FIRST:]).all(axis=-1).any()


@pytest.mark.parametrize("mask", masks(False))
def test_a_dropped_key_has_no_gradient(backend, mask):
    """Every document but the first is dropped, from the second one's rows as well."""
    kind = {name: value.copy() for name, value in masks(False)[mask].items()}
    if "attn_mask" in kind:
        kind["attn_mask"][..., FIRST:] = False if kind["attn_mask"].dtype == bool else -np.inf
    else:
        kind["startend_row_indices"][:, :, FIRST:] = (0, LENGTH)
    got = attend(backend, *inputs("float32", np.nan), **kind)
    assert all(np.isfinite(got[name]).all() for name in ("out", "dq", "dk", "dv"))
    assert not got["dk"][:, FIRST:].any() and not got["dv"][:, FIRST:].any() and not got["out"][:, FIRST:].any()
    assert np.isneginf(got["lse"][:, FIRST:]).all()


@pytest.mark.parametrize("first", range(8, LENGTH - 8, 24))
@pytest.mark.parametrize("mask", ["bool", "bounds"])
def test_a_document_gets_what_it_gets_alone(backend, first, mask):
    """Wherever it begins: at a vector, within one, or amid the keys that go together in a matrix unit."""
    given, dlse = inputs("bfloat16")
    got = attend(backend, given, dlse, **masks(False, first)[mask])
    alone = attend(backend, {name: value[:, first:] for name, value in given.items()}, dlse[:, :, first:])
    for name, want in alone.items():
        np.testing.assert_allclose(got[name][:, first:], want, rtol=4e-2, atol=4e-2, err_msg=name)


@pytest.mark.parametrize("q_len", [1, 3, LENGTH], ids=lambda q_len: f"Sq{q_len}")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_later_key_reaches_no_earlier_query(backend, q_len, bad, dtype):
    """Short queries take the way of decoding on cpu. Only the last query attends to the last key."""
    (clean, dlse), (given, _) = inputs(dtype), inputs(dtype, bad, rows=slice(LENGTH - 1, LENGTH))
    for made in (clean, given):
        made["q"], made["dout"] = made["q"][:, -q_len:], made["dout"][:, -q_len:]
    want, got = (attend(backend, made, dlse[:, :, -q_len:], causal=True) for made in (clean, given))
    for name in ("out", "lse", "dq"):
        np.testing.assert_allclose(
            got[name][:, :-1], want[name][:, :-1], rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]
        )
    assert not np.isfinite(got["out"][:, -1]).all(axis=-1).any()


def test_an_attended_value_shows_where_it_is_and_nowhere_else(backend):
    """As the sum over attended keys says: infinity in one element makes that element infinite."""
    given, dlse = inputs("float32")
    given["v"][0, 5, :, 2], given["v"][0, 9, :, 3] = np.inf, np.nan
    out = attend(backend, given, dlse, causal=True)["out"][0]
    assert np.isfinite(out[:5]).all() and np.isposinf(out[5:, :, 2]).all() and np.isfinite(out[5:9, :, 3]).all()
    assert np.isnan(out[9:, :, 3]).all() and np.isfinite(np.delete(out, [2, 3], axis=-1)).all()


@pytest.mark.parametrize("count", [2, 40], ids=["decode", "prefill"])
def test_a_later_token_reaches_no_earlier_one_in_a_cache(backend, count):
    rng = np.random.default_rng(0)
    bad = rng.standard_normal((count, 2, 8)).astype(np.float32)
    tokens = {"q": rng.standard_normal((count, 4, 8)).astype(np.float32), "k": bad, "v": bad[::-1].copy()}

    def run():
        caches = [np.full((3, 2, 32, 8), np.nan, np.float32) for _ in range(2)]
        lengths = {"seq_lens_encoder": [count], "seq_lens_decoder": [0], "seq_lens_this_time": [count]}
        with fk.use_backend(backend):
            return fk.paged_attention(
                **tokens,
                key_cache=caches[0],
                value_cache=caches[1],
                block_tables=np.array([[2, 0]], np.int32),
                **{name: np.array(value, np.int32) for name, value in lengths.items()},
            )

    want = run()
    tokens["k"], tokens["v"] = tokens["k"].copy(), tokens["v"].copy()
    tokens["k"][-1], tokens["v"][-1, :, 0] = np.nan, np.inf
    got = run()
    assert np.isfinite(want).all() and not np.isfinite(got[-1]).all()
    np.testing.assert_allclose(got[:-1], want[:-1], rtol=1e-5, atol=1e-6)


def test_the_reference_agrees():
    """The float64 oracle obeys the same rule."""
    (clean, dlse), (given, _) = inputs("float64"), inputs("float64", np.nan)
    kind = masks(False)["bool"]
    spec = fk.flash_attention.spec
    results = []
    for made in (clean, given):
        tensors = {name: made[name] for name in "qkv"}
        out, lse = spec.reference(**tensors, **kind, return_lse=True)
        grads = spec.reference_vjp((made["dout"], dlse), **tensors, **kind, return_lse=True)
        results.append([out, lse.swapaxes(1, 2), *grads.values()])
    for want, got in zip(*results, strict=True):
        np.testing.assert_allclose(got[:, :FIRST], want[:, :FIRST], rtol=1e-12, atol=1e-12)
        assert np.isnan(got[:, FIRST:]).any()
