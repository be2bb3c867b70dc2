"""What callers get wrong: policies, values, gradients, copies and plugins. Each mistake is named."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading

import numpy as np
import pytest

import fusionkit as fk
from fusionkit import registry
from fusionkit.capability import MultipleOf
from fusionkit.spec import TensorSpec
from tests.core import toy

X, WEIGHT = np.ones((2, 8), np.float32), np.ones(8, np.float32)
Q = np.random.default_rng(0).standard_normal((1, 4, 2, 8)).astype(np.float32)


@pytest.mark.parametrize("wish", [[], {}, {"swiglu": []}, None, 5, {"swiglu": 5}, [5]])
def test_a_policy_that_names_nothing_is_refused(wish):
    with pytest.raises(fk.SettingError, match="use_backend must name a backend"):
        fk.use_backend(wish)


def test_a_one_shot_iterable_is_read_once():
    with fk.use_backend(name for name in ["eager"]):
        assert fk.swiglu.explain(X, X).chosen == "eager"


def test_one_policy_object_may_be_shared_by_threads_and_entered_again():
    shared = fk.use_backend("eager")
    seen = []

    def work():
        for _ in range(50):
            with shared, shared:
                seen.append(fk.swiglu.explain(X, X).chosen)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["eager"] * 200


def test_decorating_what_runs_after_the_call_is_refused():
    with pytest.raises(TypeError, match="use_backend: the function must run when"):

        @fk.use_backend("eager")
        async def later():
            return fk.swiglu(X, X)

        asyncio.run(later())


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize(
    "values, message",
    [
        ({"scale": "0.5"}, "scale must be a number or None, got '0.5'"),
        ({"causal": "no"}, "causal must be a bool, got 'no'"),
        ({"causal": 1}, "causal must be a bool, got 1"),
        ({"return_lse": None}, "return_lse must be a bool, got None"),
    ],
)
def test_values_of_a_wrong_type_are_named(backend, values, message):
    with fk.use_backend(backend), pytest.raises(TypeError, match=f"flash_attention: {message}"):
        fk.flash_attention(Q, Q, Q, **values)


def test_numpy_scalars_are_values():
    fk.fusion_rms_norm(X, WEIGHT, epsilon=np.float32(1e-5))


@pytest.mark.parametrize("dtype", ["int16", "complex64", "float64", "object"])
def test_foreign_dtypes_are_named(dtype):
    with pytest.raises(ValueError, match=f"swiglu: gate must be of dtype float32, bfloat16 or float16, got {dtype}"):
        fk.swiglu(X.astype(dtype), X)


def test_foreign_paddle_dtypes_are_named():
    paddle = pytest.importorskip("paddle")
    with pytest.raises(ValueError, match="swiglu: gate must be of dtype .* got int16"):
        fk.swiglu(paddle.ones([2, 8]).cast("int16"), paddle.ones([2, 8]))


def test_a_tensor_spec_is_not_a_tensor():
    spec = TensorSpec((2, 8), "float32")
    with pytest.raises(TypeError, match="swiglu: gate must be a tensor, got a TensorSpec. TensorSpecs are for explain"):
        fk.swiglu(spec, spec)


@pytest.mark.parametrize("shape", [(2.5, 8), (-5, 8), (None, 8), 8, "ab"])
def test_shapes_are_sizes(shape):
    with pytest.raises((TypeError, ValueError), match="TensorSpec: shape must be"):
        TensorSpec(shape, "float32")


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize(
    "grads, message",
    [
        (X[:1], r"grad_outputs must be \[2, 8\] float32 for y, got \[1, 8\] float32"),
        (X.astype("f8"), "grad_outputs must be .* got .* float64"),
        ((X, X), r"grad_outputs must be 1 \(y\), got 2"),
        (None, "grad_outputs must be an array for y, got NoneType"),
    ],
)
def test_gradients_of_outputs_must_be_like_the_outputs(backend, grads, message):
    with fk.use_backend(backend), pytest.raises((TypeError, ValueError), match=f"fusion_rms_norm: {message}"):
        fk.fusion_rms_norm.vjp(X, WEIGHT, grad_outputs=grads)


def test_a_broadcast_mask_says_nothing_of_an_unknown_size():
    def spec(*shape, dtype="float32"):
        return TensorSpec(shape, dtype, "cpu")

    keys, mask = spec(-1, -1, 8, 128), spec(1, 1, -1, -1, dtype="bool")
    assert fk.flash_attention.explain(spec(-1, -1, -1, 128), keys, keys, attn_mask=mask).chosen == "cpu"


def test_ops_are_copied_and_pickled_as_themselves():
    fk.swiglu(X, X)
    assert copy.deepcopy({"act": fk.swiglu})["act"] is fk.swiglu
    assert pickle.loads(pickle.dumps(fk.swiglu)) is fk.swiglu
    assert "Source:" in fk.swiglu.__doc__


def test_a_call_that_fails_is_not_counted_as_run():
    labels = np.array([0, 1])
    fk.fused_linear_cross_entropy(X, np.ones((8, 4), np.float32), labels)
    with pytest.raises(ValueError, match="labels must be in"):
        fk.fused_linear_cross_entropy(X, np.ones((8, 4), np.float32), labels + 9)
    assert list(fk.ledger().values()) == [1]


def test_a_cache_that_paddle_would_copy_is_refused():
    paddle = pytest.importorskip("paddle")
    tokens, cache = paddle.ones([1, 2, 8]), paddle.zeros([3, 2, 4, 8])
    one, table = paddle.ones([1], "int32"), paddle.zeros([1, 1], "int32")
    lengths = dict(seq_lens_encoder=one, seq_lens_decoder=one * 0, seq_lens_this_time=one, block_tables=table)
    turned = paddle.zeros([3, 4, 2, 8]).transpose([0, 2, 1, 3])
    fk.paged_attention(tokens, tokens, tokens, cache, cache.clone(), **lengths)
    with pytest.raises(ValueError, match="value_cache must be contiguous, because it is updated in place"):
        fk.paged_attention(tokens, tokens, tokens, cache, turned, **lengths)


def test_questions_may_be_asked_inside_a_traced_function():
    paddle = pytest.importorskip("paddle")
    answers = []

    @paddle.jit.to_static(full_graph=True)
    def traced(x):
        answers.append(fk.swiglu.explain(x, x).chosen)
        return fk.swiglu.bind(x, x)(x, x)

    assert traced(paddle.ones([2, 8])).shape == [2, 8] and answers[0] == "cpu"


@pytest.mark.parametrize(
    "broken, message",
    [
        (fk.Backend("toy", ("toy",), {"swiglu": None}), "cannot be read: AttributeError"),
        (
            fk.Backend("toy", ("toy",), {"swiglu": fk.Kernel({"nunpy": toy.REFERENCE})}),
            "no framework is called 'nunpy'",
        ),
        (toy.backend(when=(MultipleOf("hiden_size", 4),)), "the op has no 'hiden_size'"),
        (
            fk.Backend("toy", ("toy",), {}, proven_on="paper"),
            "must be hardware, emulator, none, not stated, got 'paper'",
        ),
        (
            fk.Backend("toy", ("toy",), {}, environment_aliases={"TOY_MC2": "FUSIONKIT_MC3"}),
            "toy: TOY_MC2 stands for 'FUSIONKIT_MC3', which is no setting; did you mean 'FUSIONKIT_MC2'?",
        ),
    ],
    ids=["kernel", "framework", "subject", "proof", "alias"],
)
def test_malformed_declarations_are_the_plugins_problem(broken, message):
    plugin = registry._plugin("toy", ["toy-package 1.0"], broken, None)
    assert plugin.backend is None and message in plugin.problem


def test_eager_paged_attention_is_refused_while_tracing():
    paddle = pytest.importorskip("paddle")
    tokens, cache, one = paddle.ones([1, 2, 8]), paddle.zeros([3, 2, 4, 8]), paddle.ones([1], "int32")

    @paddle.jit.to_static(full_graph=True)
    def traced(tokens, cache, one, table):
        lengths = dict(seq_lens_encoder=one, seq_lens_decoder=one, seq_lens_this_time=one, block_tables=table)
        return fk.paged_attention(tokens, tokens, tokens, cache, cache.clone(), **lengths)

    with fk.use_backend("eager"), pytest.raises(fk.NoBackendError, match="eager: the lengths are read on the host"):
        traced(tokens, cache, one, paddle.zeros([1, 1], "int32"))


KEYS = np.zeros((1, 6, 2, 8), np.float32)
CUT = np.array([1, 0, 1, 1, 1, 0]).reshape(1, 1, 1, 6)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "int8"])
def test_a_mask_of_integers_is_told_to_become_bool(dtype):
    with pytest.raises(ValueError, match=r'got u?int\d+. Pass mask.astype\("bool"\).*True = attend'):
        fk.flash_attention(Q, KEYS, KEYS, attn_mask=CUT.astype(dtype))


@pytest.mark.parametrize("kind", ["numpy", "paddle"])
def test_explain_notes_a_floating_mask_of_0_and_1(kind):
    paddle = pytest.importorskip("paddle")
    made = np.asarray if kind == "numpy" else paddle.to_tensor
    q, keys = made(Q), made(KEYS)

    def said(mask):
        return str(fk.flash_attention.explain(q, keys, keys, attn_mask=mask))

    doubtful = made(CUT.astype(np.float32))
    assert "note: attn_mask is float32 and holds only 0 and 1" in said(doubtful)
    assert 'mask.astype("bool")' in said(doubtful)
    for sound in (CUT.astype(bool), np.where(CUT, 0, -np.inf).astype(np.float32), np.zeros_like(CUT, np.float32)):
        assert "note:" not in said(made(sound))
    assert "note:" not in str(fk.flash_attention.explain(q, keys, keys))
    assert "note:" not in said(TensorSpec((1, 1, 4, 6), "float32"))


@pytest.mark.parametrize("shape", [(6,), (4, 6), (1, 6), (1, 4, 6), (1, 1, 3, 6), (1, 1, 4, 1)])
def test_a_mask_of_another_shape_is_told_which_axes_may_be_1(shape):
    with pytest.raises(ValueError, match=r"a padding mask is \[batch_size, 1, 1, kv_len\]"):
        fk.flash_attention(Q, KEYS, KEYS, attn_mask=np.ones(shape, bool))
