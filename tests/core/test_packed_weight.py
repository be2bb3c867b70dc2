"""pack_weight: explicit, for inference, read by the backend that packed it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fusionkit as fk

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
        with pytest.raises(fk.NoBackendError, match="weight.packed_by must be None or cpu, got eager"):
            fk.fused_linear(X, packs["eager"])
    np.testing.assert_allclose(fk.fused_linear(X, packs["eager"]), fk.fused_linear(X, packs["cpu"]), atol=1e-5)


def test_training_through_a_packed_weight_is_refused():
    paddle = pytest.importorskip("paddle")
    x = paddle.to_tensor(X)
    x.stop_gradient = False
    packed = fk.pack_weight(WEIGHT, dtype="float32")
    with pytest.raises(fk.NoBackendError, match="weight is packed, for inference only, and gradients are wanted"):
        fk.fused_linear(x, packed)
    with paddle.no_grad():
        assert fk.fused_linear(x, packed).shape == [3, 17]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dtype": "int8"}, "dtype must be bfloat16 or float32, got 'int8'; int8 packs are not supported yet"),
        ({"group_size": 64}, "group_size must be None, got 64"),
        ({"weight": WEIGHT[0]}, r"weight must be \[in_features, out_features\]"),
        ({"weight": WEIGHT.astype("i4")}, "weight must be .* got .*int32"),
    ],
)
def test_bad_packs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"pack_weight: {message}"):
        fk.pack_weight(**({"weight": WEIGHT} | arguments))


def test_dtypes_must_fit():
    packed = fk.pack_weight(WEIGHT, dtype="bfloat16")
    with pytest.raises(ValueError, match="weight must be of dtype float32"):
        fk.fused_linear(X, packed)
