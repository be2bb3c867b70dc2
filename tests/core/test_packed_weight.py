"""pack_weight: explicit, for inference, read by the backend that packed it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import fusionkit as fk
from fusionkit import settings

X = np.random.default_rng(0).standard_normal((3, 33)).astype(np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((33, 17)).astype(np.float32)
BIAS = np.arange(17, dtype=np.float32)


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_with_a_packed_weight(backend, dtype):
    x = X.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    with fk.use_backend(backend):
        packed = fk.pack_weight(WEIGHT, dtype=dtype)
        y = fk.fused_linear(x, packed, BIAS)
        again = fk.fused_linear(x, packed, BIAS)
        unpacked = fk.fused_linear(x, WEIGHT, BIAS)
    assert packed.backend == backend and packed.shape == (33, 17) and packed.dtype == dtype
    bound = 2e-6 if dtype == "float32" else 2**-7
    for result in (y, again):
        np.testing.assert_allclose(result.astype("f8"), unpacked.astype("f8"), rtol=bound, atol=bound)
    assert fk.ledger()[("fused_linear", backend, "chosen")] == 3


def test_a_packed_weight_does_not_follow_its_source():
    weight = WEIGHT.copy()
    packed = fk.pack_weight(weight, dtype="float32")
    before = fk.fused_linear(X, packed)
    weight[:] = 0
    np.testing.assert_array_equal(fk.fused_linear(X, packed), before)


def test_another_backends_pack_is_refused_also_after_a_remembered_decision():
    packs = {}
    for name in ("cpu", "eager"):
        with fk.use_backend(name):
            packs[name] = fk.pack_weight(WEIGHT, dtype="float32")
    with fk.use_backend("cpu"):
        fk.fused_linear(X, packs["cpu"])
        with pytest.raises(
            fk.NoBackendError, match="weight.packed_by must be None, cpu, arrays or arrays that round x, got eager"
        ):
            fk.fused_linear(X, packs["eager"])
    np.testing.assert_allclose(fk.fused_linear(X, packs["eager"]), fk.fused_linear(X, packs["cpu"]), atol=1e-5)


def test_training_through_a_packed_weight_is_refused():
    paddle = pytest.importorskip("paddle")
    x = paddle.to_tensor(X)
    x.stop_gradient = False
    packed = fk.pack_weight(WEIGHT, dtype="float32")
    for pack in (packed, fk.pack_weight(WEIGHT, dtype="bfloat16")):  # the dtype does not fit, which is not the point
        with pytest.raises(fk.NoBackendError, match="weight is packed, for inference only, and gradients are wanted"):
            fk.fused_linear(x, pack)
    with paddle.no_grad():
        assert fk.fused_linear(x, packed).shape == [3, 17]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dtype": "int2"}, "dtype must be bfloat16 or float32 or int8 or int4, got 'int2'"),
        ({"group_size": 64}, "group_size must be None, got 64"),
        ({"weight": WEIGHT[0]}, r"weight must be \[in_features, out_features\]"),
        ({"weight": WEIGHT.astype("i4")}, "weight must be .* got .*int32"),
    ],
)
def test_bad_packs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"pack_weight: {message}"):
        fk.pack_weight(**({"weight": WEIGHT} | arguments))


@pytest.mark.parametrize("x_dtype", ["float32", "float16"])
def test_dtypes_must_fit_and_the_error_says_how_to_pack(x_dtype):
    packed = fk.pack_weight(WEIGHT, dtype="bfloat16")
    with pytest.raises(ValueError, match="weight must be of dtype float") as refused:
        fk.fused_linear(X.astype(x_dtype), packed)
    rule, advice = str(refused.value).split("; it is packed, and a pack cannot be cast. ")
    accepted = "float32 (the dtype of x)" if x_dtype == "float32" else "float16 (the dtype of x) or float32"
    assert rule == f"fused_linear: weight must be of dtype {accepted}, got bfloat16"
    call = advice.removeprefix("Pack the weight with ").removesuffix(", which x of any dtype takes")
    repacked = eval(call, {"fusionkit": fk, "weight": WEIGHT})  # what the error says works as it stands
    assert fk.fused_linear(X.astype(x_dtype), repacked).shape == (3, 17)


@pytest.mark.parametrize("framework", ["numpy", "paddle"])
@pytest.mark.parametrize(
    "dtype, packed_dtype", [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")]
)
def test_the_weights_own_dtype_is_the_default(framework, dtype, packed_dtype):
    name = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    x, weight = X.astype(name), WEIGHT.astype(name)
    if framework == "paddle":
        paddle = pytest.importorskip("paddle")
        x, weight = (paddle.to_tensor(array.astype(np.float32)).cast(dtype) for array in (X, WEIGHT))
    packed = fk.pack_weight(weight)
    assert packed.dtype == packed_dtype
    y = fk.fused_linear(x, packed)
    got = np.asarray(y.cast("float32") if framework == "paddle" else y, dtype=np.float64)
    np.testing.assert_allclose(got, X.astype(np.float64) @ WEIGHT, atol=0.1 if dtype != "float32" else 1e-5)


def test_packs_with_dtypes_of_equal_text_are_alike_for_dispatch():
    """Also where the text was put together at run time, or read back from a file."""
    op = fk.Op("fused_linear")
    packs = [fk.pack_weight(WEIGHT, dtype="".join(["float", bits])) for bits in ("32", "32")]
    for packed in (*packs, pickle.loads(pickle.dumps(packs[0])), copy.deepcopy(packs[0])):
        np.testing.assert_allclose(op(X, packed), X @ WEIGHT, atol=1e-5)
    assert len(op._plans) == 1


def test_packing_is_one_choice_with_dispatch_and_strict_holds_for_it(install, monkeypatch):
    """cpu, the device's own, packs nothing here: the next that does is taken, unless strict settings forbid it."""
    bare = fk.Kernel({"numpy": "fusionkit_backends.cpu.fused_linear:through_numpy"}, checks_sizes=True)
    install(fk.Backend("cpu", ("cpu",), {"fused_linear": bare}))
    assert fk.pack_weight(WEIGHT).backend == "eager"
    strict = replace(settings.current(), values={"FUSIONKIT_STRICT": "1"})
    monkeypatch.setattr(settings, "current", lambda: strict)
    with pytest.raises(fk.NoBackendError) as refused:
        fk.pack_weight(WEIGHT)
    text = str(refused.value)
    assert text.startswith("pack_weight: no backend packs this weight (device cpu, inference, x [1, 33] float32, ")
    assert "; FUSIONKIT_STRICT=1 forbids a fallback\n" in text and "\n  cpu: packs no weights\n" in text
    assert text.endswith("Pass the weight itself to fused_linear to run without a pack.")


def test_a_wish_for_a_backend_that_packs_nothing_is_refused(install):
    install(fk.Backend("toy", ("cpu",), {"fused_linear": fk.Kernel({"numpy": "tests.core.toy:fused_linear"})}))
    with fk.use_backend("toy"), pytest.raises(fk.NoBackendError) as refused:
        fk.pack_weight(WEIGHT)
    assert str(refused.value).startswith("pack_weight: toy (use_backend) does not pack this weight (device cpu")
    assert "\n  toy: packs no weights\n" in str(refused.value)
    assert 'Use fusionkit.use_backend("cpu") to run there.' in str(refused.value)


def test_a_backend_that_does_not_round_is_refused_by_name(install):
    with (
        fk.use_backend("eager"),
        pytest.raises(fk.NoBackendError, match="eager: packs no weights whose products round"),
    ):
        fk.pack_weight(WEIGHT, dtype="int8", activations="int8")
    module = "fusionkit_backends.cpu.fused_linear"
    kernel = fk.Kernel({"numpy": f"{module}:through_numpy"}, pack_quantized=f"{module}:pack_quantized")
    install(fk.Backend("toy", ("cpu",), {"fused_linear": kernel}))
    with fk.use_backend("toy"):
        assert fk.pack_weight(WEIGHT, dtype="int8").backend == "toy"
        with pytest.raises(fk.NoBackendError, match="toy: packs no weights whose products round x to int8"):
            fk.pack_weight(WEIGHT, dtype="int8", activations="int8")
