"""Results that float32 holds are right although a step on the way to them does not fit: see extreme_values.py."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fusionkit_backends.cpu import runtime

import fusionkit as fk
from tests import cpu_targets, extreme_values

ISAS = runtime.native().available_isas()


CHECKS = [
    pytest.param(extreme.op, extreme.case.name, dtype, id=f"{extreme.op}-{dtype}-{extreme.case.name}")
    for extreme in extreme_values.EXTREMES
    for dtype in extreme.dtypes
]
ON_TARGETS = [
    pytest.param(*check.values, isa, id=f"{check.id}-{isa}")
    for check in CHECKS
    for isa in cpu_targets.tested()
    if cpu_targets.worth_testing(isa, check.values[0])
]


@pytest.mark.parametrize("op, name, dtype, isa", ON_TARGETS)
def test_cpu(op, name, dtype, isa, native):
    native.set_isa(isa)
    extreme_values.check(op, name, dtype, "cpu", "numpy")


@pytest.mark.parametrize("op, name, dtype", CHECKS)
def test_eager(op, name, dtype):
    extreme_values.check(op, name, dtype, "eager", "paddle")


# Below the smallest normal number; multiples of the smallest subnormal one, so that the tests' results are exact.
SMALLEST = {"bfloat16": 2.0**-133, "float16": 2.0**-24, "float32": 2.0**-149}
TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}


def subnormals(dtype, *shape):
    steps = np.random.default_rng(3).integers(-100, 100, shape)
    return (steps * SMALLEST[dtype]).astype(TYPES[dtype])


def bits(array):
    return np.ascontiguousarray(array).view(np.uint32 if array.dtype.itemsize == 4 else np.uint16)


def same_bits(got, want, dtype):
    want = np.asarray(want, dtype=np.float64).astype(TYPES[dtype])
    assert np.any(want) and got.dtype == want.dtype
    np.testing.assert_array_equal(bits(got + np.zeros_like(got)), bits(want + np.zeros_like(want)))  # -0 becomes 0


@pytest.mark.parametrize("columns", [5, 64, 71])  # part of a vector, whole ones, both
@pytest.mark.parametrize("dtype", SMALLEST)
@pytest.mark.parametrize("isa", ISAS)
def test_subnormal_inputs_and_results_are_kept(isa, dtype, columns, native):
    native.set_isa(isa)
    tiny = subnormals(dtype, 3, columns)
    exact = tiny.astype(np.float64)
    ones = np.ones_like(tiny)
    with fk.use_backend("cpu"):
        same_bits(fk.swiglu((32 * ones).astype(tiny.dtype), tiny), 32 * exact, dtype)
        same_bits(fk.swiglu.vjp(tiny, ones, grad_outputs=ones + ones)["gate"], ones.astype("f8"), dtype)
        same_bits(fk.swiglu.vjp((32 * ones).astype(tiny.dtype), ones, grad_outputs=tiny)["up"], 32 * exact, dtype)
        same_bits(fk.fusion_rms_norm(ones, tiny[0], epsilon=0.0), np.broadcast_to(exact[0], tiny.shape), dtype)
        same_bits(fk.fusion_add_rms_norm(tiny, tiny, ones[0])[1], 2 * exact, dtype)
        heads, table = tiny[:, :4].reshape(1, 3, 1, 4), np.ones((3, 2), np.float32)
        for interleaved in (False, True):
            q, _ = fk.fusion_rope(heads, heads, table, 0 * table, interleaved=interleaved)
            same_bits(q, heads.astype(np.float64), dtype)


@pytest.mark.parametrize("isa", ISAS)
def test_results_between_two_subnormal_numbers_are_rounded_to_nearest_even(isa, native):
    native.set_isa(isa)
    up = (np.arange(-40, 41)[None] * SMALLEST["float32"] * 2**14).astype(np.float32)  # quarters of bfloat16's steps
    x = np.zeros(up.shape, TYPES["bfloat16"])
    with fk.use_backend("cpu"):
        _, total = fk.fusion_add_rms_norm(up, x, np.ones(81, np.float32))
    assert total.dtype == x.dtype
    same_bits(total, up, "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("isa", ISAS)
def test_products_keep_subnormals_but_for_bfloat16(isa, dtype, native):
    native.set_isa(isa)
    tiny, eye = subnormals(dtype, 33, 40), np.eye(40, dtype=TYPES[dtype])
    with fk.use_backend("cpu"):
        same_bits(fk.fused_linear(tiny, eye), tiny, dtype)
        same_bits(fk.fused_linear(np.eye(33, dtype=TYPES[dtype]), tiny), tiny, dtype)
