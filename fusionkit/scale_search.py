"""Symmetric codes whose scales are searched for: less squared error than `quantize` leaves, at more cost."""

from __future__ import annotations

import numpy as np

from fusionkit.quantized_weight import (
    SMALLEST_SCALE,
    QuantizedWeight,
    code_range,
    in_groups,
    num_groups,
    require_matrix,
    strips,
)
from fusionkit.spec import Array

# The extreme of a group becomes the code -2^(bits - 1) and a little less or more. llama.cpp tries nineteen such steps;
# these five leave hardly more error.
STEPS = (-0.8, -0.4, 0.0, 0.4, 0.8)
_SIGNIFICANT_BITS = 11  # float16's, so that a pack can store the scale in it


def quantize_by_search(weight: Array, dtype: str, group_size: int | None = None) -> QuantizedWeight:
    """Round a weight to symmetric codes with little squared error in each group.

    Of the codes for each of the STEPS the least-squares scale is taken, sum(w * code) / sum(code^2). The weights are
    rounded once more, and the best of the five is kept. So a scale may be negative, and the largest weights may be
    clipped: a value may be farther than scale / 2 from its weight, which `quantize` excludes. Where a scale would be
    below 1.2e-38 all values of the group are 0.

    Args:
        weight, dtype, group_size: as of `quantize`.

    Raises:
        ValueError: as of `quantize`.

    Source: ggml-quants.c of llama.cpp, make_qx_quants, without its weights: w^2 leaves more error in a model's answers.
    """
    require_matrix(weight, dtype, group_size)
    in_features, out_features = weight.shape
    codes = np.empty(weight.shape, np.int8)
    scales = np.zeros((num_groups(in_features, group_size), out_features), np.float32)
    for strip in strips(in_features, out_features):
        groups = in_groups(weight[:, strip], group_size)
        groups.reshape(-1, groups.shape[2])[in_features:] = 0  # what fills up the last group has no say
        exponents = np.frexp(np.abs(groups).max(axis=1))[1]  # so that squares are numbers of float32
        scaled = np.ldexp(groups, -exponents[:, None]).astype(np.float32)
        scale, found = _best(scaled, *code_range(dtype, symmetric=True))
        scale = np.ldexp(scale.astype(np.float64), exponents)
        scales[:, strip] = np.where(np.abs(scale) < SMALLEST_SCALE, 0, scale)
        codes[:, strip] = found.reshape(-1, groups.shape[2])[:in_features]
    return QuantizedWeight(codes, scales, None, dtype, group_size)


def _best(groups: Array, low: int, high: int) -> tuple[Array, Array]:
    """Scales [groups, columns] and codes [groups, group_size, columns]."""
    extremes = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0]
    least = np.full(extremes.shape, np.inf, np.float32)
    scales, codes = np.zeros_like(extremes), np.zeros(groups.shape, np.float32)
    for step in STEPS:
        tried = np.clip(np.rint(_divided(groups, extremes / np.float32(low - step))), low, high)
        scale = _rounded(_least_squares(groups, tried))
        tried = np.clip(np.rint(_divided(groups, scale)), low, high)
        error = ((groups - tried * scale[:, None]) ** 2).sum(axis=1)
        better = error < least
        least, scales = np.where(better, error, least), np.where(better, scale, scales)
        np.copyto(codes, tried, where=better[:, None])
    return scales, codes


def _divided(groups: Array, scale: Array) -> Array:
    result: Array = groups / np.where(scale == 0, 1, scale)[:, None]
    return result


def _least_squares(groups: Array, codes: Array) -> Array:
    squares = (codes * codes).sum(axis=1)
    result: Array = (groups * codes).sum(axis=1) / np.where(squares > 0, squares, 1)
    return result


def _rounded(scale: Array) -> Array:
    mantissas, exponents = np.frexp(scale)
    result: Array = np.ldexp(np.rint(mantissas * (1 << _SIGNIFICANT_BITS)), exponents - _SIGNIFICANT_BITS)
    return result
