"""quantize and from_gguf: the values that codes stand for, against exact fractions and the library `gguf`."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import fusionkit as fk
from fusionkit.gguf_blocks import from_gguf
from fusionkit.quantized_weight import GROUP_SIZES, QuantizedWeight, quantize

FORMATS = [(dtype, size, even) for dtype in ("int8", "int4") for size in (*GROUP_SIZES, None) for even in (True, False)]
SHAPES = ((1, 1), (0, 3), (4, 0), (37, 5), (64, 2), (131, 4))


def of_each_weight(values, weight, group_size):
    size = group_size or max(len(weight), 1)
    return values[np.arange(len(weight)) // size]


@pytest.mark.parametrize("dtype, group_size, symmetric", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_value_is_within_half_a_scale_of_its_weight(shape, dtype, group_size, symmetric):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    quantized = quantize(weight, dtype, group_size, symmetric)
    scales = of_each_weight(quantized.scales, weight, group_size)
    minimums = np.zeros_like(scales) if symmetric else of_each_weight(quantized.minimums, weight, group_size)
    values = quantized.dequantize()
    for place in np.ndindex(shape):
        code, scale, minimum, value = (each[place].item() for each in (quantized.codes, scales, minimums, values))
        exact = Fraction(code) * Fraction(scale) + Fraction(minimum)
        assert exact == Fraction(value)
        assert abs(exact - Fraction(weight[place].item())) <= Fraction(scale) / 2
        assert np.float32(code) * np.float32(scale) + np.float32(minimum) == np.float32(value)


@pytest.mark.parametrize("dtype, group_size, symmetric", FORMATS)
def test_scales_are_the_smallest_of_11_bits_that_clip_no_code(dtype, group_size, symmetric):
    weight = np.random.default_rng(1).standard_normal((256, 3)).astype(np.float32)
    quantized = quantize(weight, dtype, group_size, symmetric)
    most = (1 << (8 if dtype == "int8" else 4)) - 1 if not symmetric else 127 if dtype == "int8" else 7
    for (group, column), scale in np.ndenumerate(quantized.scales):
        part = (
            weight[:, column] if group_size is None else weight[group * group_size : (group + 1) * group_size, column]
        )
        low = 0 if symmetric else quantized.minimums[group, column]
        span = max(abs(part)) if symmetric else max(part) - np.float64(low)
        step = 2.0 ** (np.frexp(np.float64(scale))[1] - 11)
        assert scale % step == 0 and (scale - step) * most < span <= scale * most
        assert symmetric or min(part) - 2.0**-9 * abs(min(part)) < low <= min(part)
    assert quantized.scale_dtype == "float16"


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-20, 1e20, 8e37])
def test_weights_at_the_ends_of_float32(size, symmetric):
    weight = (np.linspace(-1, 1, 32)[:, None] * size).astype(np.float32)
    quantized = quantize(weight, "int8", 32, symmetric)
    error = np.abs(quantized.dequantize() - weight).max()
    assert error <= max(quantized.scales.max() / 2, 2.0**-127) and quantized.scale_dtype == "float32"


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -3.0])
def test_a_constant_group_is_kept(dtype, value):
    weight = np.full((40, 2), value, np.float32)
    for symmetric in (True, False):
        values = quantize(weight, dtype, 32, symmetric).dequantize()
        np.testing.assert_array_less(np.abs(values - value), 1e-9 + (np.abs(value) * 2.0**-10 if symmetric else 0))
    rng = np.random.default_rng(2)
    sparse = np.where(rng.random((64, 3)) < 0.5, 0, rng.standard_normal((64, 3))).astype(np.float32)
    assert not quantize(sparse, dtype, 32).dequantize()[sparse == 0].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_strided_weights_of_each_dtype_and_more_columns_than_a_strip(dtype, monkeypatch):
    weight = np.random.default_rng(3).standard_normal((7, 50)).astype(dtype).T
    whole = quantize(weight, "int4", 16, False)
    monkeypatch.setattr("fusionkit.quantized_weight._ELEMENTS_AT_A_TIME", 100)
    in_strips = quantize(np.ascontiguousarray(weight), "int4", 16, False)
    for name in ("codes", "scales", "minimums"):
        np.testing.assert_array_equal(getattr(in_strips, name), getattr(whole, name))


@pytest.mark.parametrize(
    "dtype, group_size, symmetric, bits",
    [("int8", 32, True, 8.5), ("int4", 32, True, 4.5), ("int4", 64, False, 4.5), ("int8", None, True, 8 + 16 / 256)],
)
def test_num_bytes_and_the_cost_of_a_product_with_them(dtype, group_size, symmetric, bits):
    quantized = quantize(np.random.default_rng(4).standard_normal((256, 6)), dtype, group_size, symmetric)
    assert quantized.num_bytes == bits / 8 * 256 * 6
    dims = {"...": 1, "in_features": 256, "out_features": 6}
    cost = fk.fused_linear.spec.cost
    small, large = cost(dims | {"weight_bytes": quantized.num_bytes}, 2, False), cost(dims, 2, False)
    assert large.bytes_read - small.bytes_read == 2 * 256 * 6 - quantized.num_bytes and small.flops == large.flops


def blocks(type_name, rows, per_row, rng):
    """Random bytes with float16 scales that are finite."""
    gguf = pytest.importorskip("gguf")
    _, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    data = rng.integers(0, 256, (rows, per_row, block_bytes), dtype=np.uint8)
    for at in {"Q4_1": (0, 2), "Q4_K": (0, 2), "Q6_K": (208,)}.get(type_name, (0,)):
        scales = rng.standard_normal((rows, per_row, 1)) * 10.0 ** rng.integers(-7, 4, (rows, per_row, 1))
        data[..., at : at + 2] = scales.astype(np.float16).view(np.uint8)
    return data.reshape(rows, -1)


def theirs(data, type_name):
    from gguf import GGMLQuantizationType, quants

    return quants.dequantize(data, GGMLQuantizationType[type_name])


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_gguf_tensors_have_the_librarys_values_bit_by_bit(type_name):
    for rows, per_row in ((1, 1), (5, 3), (200, 2)):
        data = blocks(type_name, rows, per_row, np.random.default_rng(rows))
        quantized = from_gguf(data, type_name)
        want = theirs(data, type_name).T
        got = quantized.dequantize().astype(np.float32)
        np.testing.assert_array_equal(got.view(np.uint32), np.ascontiguousarray(want).view(np.uint32))
        assert quantized.symmetric == (type_name not in ("Q4_1", "Q4_K"))


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "Q4_1"])
def test_what_the_library_quantized_keeps_its_values_and_its_size(type_name):
    from gguf import GGMLQuantizationType, quants

    weight = np.random.default_rng(5).standard_normal((6, 96)).astype(np.float32)
    data = quants.quantize(weight, GGMLQuantizationType[type_name])
    quantized = from_gguf(data, type_name)
    np.testing.assert_array_equal(quantized.dequantize().astype(np.float32), theirs(data, type_name).T)
    assert quantized.num_bytes == data.nbytes and quantized.scale_dtype == "float16"


def arrays(codes=(33, 4), groups=2, dtype=np.int8):
    return np.zeros(codes, dtype), np.zeros((groups, codes[1]), np.float32)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: quantize(np.ones((2, 2)), "int2"), "pack_weight: dtype must be int8 or int4, got 'int2'"),
        (lambda: quantize(np.ones((2, 2)), "int8", 48), r"group_size must be 16, 32, 64, 128 or None \(a whole column"),
        (lambda: quantize(np.ones(2), "int8"), r"weight must be \[in_features, out_features\] .* got \[2\] float64"),
        (lambda: quantize(np.ones((2, 2), int), "int8"), "weight must be .* got .*int64"),
        (lambda: quantize(np.full((2, 2), np.nan), "int8"), "weight must be finite and below 8.5e"),
        (lambda: quantize(np.full((2, 2), np.inf), "int4", 32, False), "weight must be finite and below 8.5e"),
        (lambda: quantize(np.full((2, 2), -9e37), "int4", 32, False), "got infinity, NaN or more than that"),
        (lambda: QuantizedWeight(*arrays(), None, "int4", 16), r"scales must be \[3, 4\] float32, got \[2, 4\]"),
        (lambda: QuantizedWeight(*arrays(dtype=np.uint8), None, "int4", 32), "codes must be .* of dtype int8, got .*"),
        (lambda: QuantizedWeight(*arrays(), arrays()[1], "int4", 32), "codes must be .* of dtype uint8, got .* int8"),
        (lambda: QuantizedWeight(arrays()[0] + 8, arrays()[1], None, "int4", 32), "codes must be from -8 to 7, got 8"),
        (lambda: quantize(np.ones((32, 2)), "int8", 32.0), r"group_size must be 16, .* got 32\.0"),
        (
            lambda: QuantizedWeight(arrays()[0], arrays()[1] + np.float32(3e38), None, "int8", 32),
            r"scales must be so small that float32 holds each value, got up to 3e\+38",
        ),
        (
            lambda: QuantizedWeight(*arrays(dtype=np.uint8), None, "int8", 32),
            r"codes must be .* of dtype int8, got \[33, 4\] uint8",
        ),
        (lambda: from_gguf(np.ones((2, 34), np.uint8), "F16"), "got 'F16'. Of other types make floats, by gguf"),
        (lambda: QuantizedWeight(arrays()[0], arrays()[1] / 0, None, "int8", 32), "scales must be finite"),
        (lambda: from_gguf(np.ones((2, 34), np.uint8), "Q5_K"), "from_gguf: type_name must be Q8_0 or .* got 'Q5_K'"),
        (lambda: from_gguf(np.ones((2, 33), np.uint8), "Q8_0"), r"a multiple of 34\] uint8 for Q8_0, and not empty"),
        (lambda: from_gguf(np.ones((0, 34), np.uint8), "Q8_0"), r"a multiple of 34\] uint8 for Q8_0, and not empty"),
        (lambda: from_gguf(np.full((1, 34), 255, np.uint8), "Q8_0"), "scales must be finite, got infinity or NaN"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_wrong_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
