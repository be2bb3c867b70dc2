"""Weights of 8 and 4 bits in exported programs: as arrays of no backend."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec

import fusionkit as fk
from fusionkit import passes
from fusionkit.nn import QuantizedLinear
from fusionkit.passes import reading
from fusionkit.passes.load import require_floats
from fusionkit.quantized_arrays import QuantizedArrays
from fusionkit.quantized_weight import quantize

FORMATS = [(dtype, size, even) for dtype in ("int8", "int4") for size in (16, 128, None) for even in (True, False)]
WEIGHT = np.random.default_rng(0).standard_normal((203, 70)).astype(np.float32)  # an odd number of in_features
X = np.random.default_rng(1).standard_normal((17, 203)).astype(np.float32)
BIAS = np.random.default_rng(2).standard_normal(70).astype(np.float32)


def exported(folder, layer, dtype="float32"):
    passes.export(layer, folder / "model", [InputSpec([-1, WEIGHT.shape[0]], dtype, "x")])
    return folder / "model"


def bits(tensor):
    return tensor.view("uint16" if tensor.dtype == paddle.bfloat16 else "int32").numpy()


@pytest.mark.parametrize("dtype, group_size, symmetric", FORMATS)
def test_arrays_hold_the_codes(dtype, group_size, symmetric):
    quantized = quantize(WEIGHT, dtype, group_size, symmetric)
    arrays = QuantizedArrays.of(quantized)
    back = arrays.weight()
    for name in ("codes", "scales", "minimums"):
        np.testing.assert_array_equal(getattr(back, name), getattr(quantized, name))
    assert (arrays.shape, arrays.symmetric, back.group_size) == (WEIGHT.shape, symmetric, group_size)
    assert arrays.codes.nbytes == (203 if dtype == "int8" else 102) * 70


@pytest.mark.parametrize("dtype, group_size, symmetric", FORMATS)
def test_a_call_with_arrays_has_the_bits_of_the_pack(dtype, group_size, symmetric):
    quantized = quantize(WEIGHT, dtype, group_size, symmetric)
    packed, layer = fk.pack_weight(quantized), QuantizedLinear(quantized, BIAS)
    for x in (paddle.to_tensor(X), paddle.to_tensor(X[:3]).cast("bfloat16"), paddle.to_tensor(X[:0])):
        with paddle.no_grad():
            y, want = layer(x), fk.fused_linear(x, packed, paddle.to_tensor(BIAS))
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(bits(y), bits(want))
    assert fk.ledger().ways()["fused_linear", "cpu", f"{dtype} packed in the call"] == 3


def test_a_program_holds_arrays_and_agrees_with_float64(tmp_path):
    quantized = quantize(WEIGHT, "int4", 32, symmetric=False)
    path = exported(tmp_path, QuantizedLinear(quantized, BIAS))
    assert WEIGHT.size / 2 < (tmp_path / "model.pdiparams").stat().st_size < WEIGHT.size
    (y,) = passes.load(path)([paddle.to_tensor(X)])
    want = fk.fused_linear.reference(X, quantized, BIAS)
    assert np.abs(y.numpy() - want).max() < 128 * 2.0**-23 * np.sqrt(np.mean(want**2))


def test_a_device_refuses_them_by_name(tmp_path):
    program, _ = reading.read(exported(tmp_path, QuantizedLinear(quantize(WEIGHT, "int8"))), "cpu")
    with pytest.raises(fk.FusionkitError, match="weights on npu:0 must be floats, got codes .* fk.quantized_linear at"):
        require_floats(program, "npu:0")


def test_arrays_that_do_not_fit_are_refused():
    arrays = QuantizedArrays.of(quantize(WEIGHT, "int4", 32))
    with pytest.raises(
        ValueError, match=r"weight must be an array or a PackedWeight, got QuantizedArrays.*arrays.weight"
    ):
        fk.fused_linear(X, arrays)
    short = QuantizedArrays(arrays.codes[1:], arrays.scales, None, "int4", 203, 32)
    with pytest.raises(ValueError, match="codes must be 102 rows of two codes each"):
        short.weight()
    tensors = QuantizedArrays(paddle.to_tensor(short.codes), paddle.to_tensor(arrays.scales), None, "int4", 203, 32)
    with pytest.raises(ValueError, match=r"quantized_linear: codes must be \[in_features"):
        fk.fused_linear(paddle.to_tensor(X), tensors)
    with pytest.raises(fk.NoBackendError, match="eager"), fk.use_backend("eager"):
        fk.fused_linear(paddle.to_tensor(X), tensors)
