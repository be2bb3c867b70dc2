"""Scales that are searched for, beside the same search written out for one group in float64."""

from __future__ import annotations

import numpy as np
import pytest

from fusionkit.quantized_weight import quantize
from fusionkit.scale_search import STEPS, quantize_by_search


def error(quantized, weight):
    return ((quantized.dequantize() - weight) ** 2).sum()


def of_a_group(group, low, high):
    """The least squared error of the five scales, rounded to 11 bits."""
    extreme = group[np.abs(group).argmax()]
    errors = []
    for step in STEPS:
        codes = np.clip(np.rint(group * (low - step) / extreme), low, high)
        scale = (group * codes).sum() / (codes * codes).sum()
        unit = 2.0 ** (np.frexp(scale)[1] - 11)
        scale = np.rint(scale / unit) * unit
        errors.append(((group - np.clip(np.rint(group / scale), low, high) * scale) ** 2).sum())
    return min(errors)


@pytest.mark.parametrize("dtype, low, high", [("int4", -8, 7), ("int8", -128, 127)])
@pytest.mark.parametrize("group_size", [16, 32, None])
def test_each_group_has_the_least_error_of_the_scales_tried(dtype, low, high, group_size):
    weight = np.random.default_rng(0).standard_normal((70, 40)).astype(np.float32)  # the last group of 32 has 6
    quantized, step = quantize_by_search(weight, dtype, group_size), group_size or 70
    assert quantized.symmetric and quantized.scale_dtype == "float16"
    for column in range(40):
        for begin in range(0, 70, step):
            part = slice(begin, begin + step)
            group = weight[part, column].astype(np.float64)
            found = ((quantized.dequantize()[part, column] - group) ** 2).sum()
            assert found <= of_a_group(group, low, high) * (1 + 1e-4)


def test_less_error_is_left_than_by_the_largest_weights_scale():
    weight = np.random.default_rng(1).standard_normal((256, 64))
    found, plain = quantize_by_search(weight, "int4", 32), quantize(weight, "int4", 32)
    assert error(found, weight) < 0.75 * error(plain, weight)
    assert found.codes.min() == -8 and found.codes.max() == 7 and (found.scales < 0).any()


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-20, 1.0, 1e20, 8e37])
def test_weights_of_any_size(size):
    weight = (np.random.default_rng(2).uniform(-1, 1, (64, 3)) * size).astype(np.float32)
    far = np.abs(quantize_by_search(weight, "int4", 32).dequantize() - weight).max()
    assert far <= max(0.1 * size, 1.1e-37)


def test_zeros_and_empty_matrices_stay():
    assert not quantize_by_search(np.zeros((33, 2), np.float32), "int4", 32).dequantize().any()
    for shape in ((0, 3), (4, 0)):
        assert quantize_by_search(np.zeros(shape, np.float32), "int4", 16).shape == shape


def test_values_on_the_codes_are_found_again():
    codes = np.random.default_rng(3).integers(-8, 8, (64, 5))
    codes[::32] = -8
    weight = codes * np.float32(0.125)
    assert np.array_equal(quantize_by_search(weight, "int4", 32).dequantize(), weight)


@pytest.mark.parametrize(
    "how, rule",
    [(("int3", 32), "dtype must be int8 or int4"), (("int4", 20), "group_size must be 16, 32, 64, 128 or None")],
)
def test_what_cannot_be_is_refused(how, rule):
    with pytest.raises(ValueError, match=rule):
        quantize_by_search(np.ones((4, 4), np.float32), *how)
    with pytest.raises(ValueError, match="weight must be finite"):
        quantize_by_search(np.full((4, 4), np.nan, np.float32), "int4")
