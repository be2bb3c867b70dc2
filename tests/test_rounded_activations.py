"""Packs that round x to int8: what becomes of x, to the bit, and the products with it."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from fusionkit_backends.cpu import runtime

import fusionkit as fk
from fusionkit import passes
from fusionkit.nn import QuantizedLinear
from fusionkit.quantized_weight import quantize
from fusionkit.rounded_activations import rounded_to_int8
from tests import guard_pages
from tests.test_quantized_packs import BIAS, FORMATS, IN_LEVELS, ISAS, WEIGHT, X, bits, in_two_levels, with_other_scales

# Tiles of 8, 4, 2 and 1 rows, alone and one after another.
ROWS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 31)
EPSILON = 2.0**-23


def rounding(*how):
    return replace(quantize(WEIGHT, *how), activations="int8")


def in_words(x, run):
    """One number at a time: the largest of its run becomes 127."""
    rounded = np.zeros(x.shape)
    for row, given in enumerate(x.astype(np.float32)):
        power = 2.0 ** max(-126, int(np.floor(np.log2(float(np.abs(given).max())))))
        for begin in range(0, x.shape[1], run):
            part = [np.float32(float(value) / power) for value in given[begin : begin + run]]
            largest = np.float32(max([2.0**-90, *map(abs, part)]))
            unit = float(np.float32(largest / np.float32(127))) * power
            for i, value in enumerate(part):
                rounded[row, begin + i] = round(float(value * np.float32(np.float32(127) / largest))) * unit
    return rounded


@pytest.mark.parametrize("group_size, run", [(16, 16), (32, 32), (128, 32), (None, 32)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_each_number_becomes_one_of_255_within_half_a_step(dtype, group_size, run):
    x = (X[:5] * 2.0 ** np.arange(-8, 12, 4)[:, None]).astype(dtype)
    got = rounded_to_int8(x, group_size)
    np.testing.assert_array_equal(got, in_words(x, run))
    padded = np.pad(np.abs(x.astype(np.float64)), ((0, 0), (0, -x.shape[1] % run)))
    largest = padded.reshape(5, -1, run).max(axis=2).repeat(run, axis=1)[:, : x.shape[1]]
    error = np.abs(got - x.astype(np.float64))
    assert (error <= largest / 254 * (1 + 2.0**-14)).all() and error.max() > 0.9 * largest.max() / 254


def test_ties_go_to_the_even_code_and_what_is_not_finite_stays():
    x = np.zeros((3, 32), np.float32)
    x[0, :4] = 127, 0.5, 1.5, -2.5
    x[1, 0], x[2, 0] = np.inf, np.nan
    x[1:, 1] = 1 / 3
    got = rounded_to_int8(x, 32)
    np.testing.assert_array_equal(got[0, :4] / got[0, 0] * 127, [127, 0, 2, -2])
    np.testing.assert_array_equal(got[1:], x[1:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("how", FORMATS, ids=str)
def test_products_are_those_of_rounded_x_in_any_company(native, isa, how):
    """Against float64 of the rounded numbers, with the bound of exact products. A row's bits are always the same."""
    native.set_isa(isa)
    quantized = rounding(*how)
    packed = fk.pack_weight(quantized)
    for x in (X[:31], X[:31].astype(ml_dtypes.bfloat16)):
        want = fk.fused_linear.reference(x, quantized, BIAS)
        together = fk.fused_linear(x, packed, BIAS)
        bound = (128 * EPSILON if x.dtype == np.float32 else 0.51 * 2.0**-7) * np.sqrt(np.mean(want**2))
        relative = 0 if x.dtype == np.float32 else 0.51 * 2.0**-7
        assert (np.abs(together.astype("f8") - want) <= bound + relative * np.abs(want)).all()
        for threads, rows in zip((1, 2, 3, 1, 2) * 2, ROWS, strict=True):
            native.set_num_threads(threads)
            for first in (0, 31 - rows):
                y = fk.fused_linear(x[first : first + rows], packed, BIAS)
                np.testing.assert_array_equal(bits(y), bits(together[first : first + rows]), f"{rows=} {first=}")
    exact = fk.fused_linear(X[:31], fk.pack_weight(replace(quantized, activations=None)), BIAS)
    far = np.abs(exact - fk.fused_linear.reference(X[:31], quantized, BIAS)).max()
    assert far > 1000 * EPSILON  # an exact product would not pass


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_largest_sums_are_exact(native, isa, dtype):
    """Codes and x at their extremes, which sums of 16 bits just hold; with the signs that make them largest."""
    native.set_isa(isa)
    low = -128 if dtype == "int8" else -8
    for symmetric, codes in ((True, (low, -low - 1)), (False, (0, -2 * low - 1))):
        kind = np.int8 if symmetric else np.uint8
        weight = np.tile(np.array(codes, kind), (160, 35))
        one = np.ones((5, 70), np.float32)
        made = quantize(np.zeros((160, 70), np.float32), dtype, 32, symmetric, "int8")
        quantized = replace(made, codes=weight, scales=one, minimums=None if symmetric else -3 * one)
        packed = fk.pack_weight(quantized)
        for x in (np.full((9, 160), 127, np.float32), np.full((9, 160), -127, np.float32)):
            x[1], x[3:, ::3] = -x[0], 0
            want = x.astype("f8") @ quantized.dequantize()
            np.testing.assert_array_equal(fk.fused_linear(x, packed), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_rows_that_are_not_finite_are_multiplied_as_floats(native, isa, dtype):
    native.set_isa(isa)
    packed = fk.pack_weight(np.abs(WEIGHT) + 1, dtype=dtype, group_size=32, symmetric=False, activations="int8")
    x = X[:11].copy()
    clean = fk.fused_linear(x, packed, BIAS)
    x[1, 7], x[3, 40], x[10, 0] = np.inf, -np.inf, np.nan
    y = fk.fused_linear(x, packed, BIAS)
    finite = [row for row in range(11) if row not in (1, 3, 10)]
    np.testing.assert_array_equal(bits(y[finite]), bits(clean[finite]))
    assert (y[1] == np.inf).all() and (y[3] == -np.inf).all() and np.isnan(y[10]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_rows_of_any_size_keep_their_precision(native, isa, dtype):
    native.set_isa(isa)
    quantized = rounding(dtype, 32)
    packed = fk.pack_weight(quantized)
    for size in (2.0**-149, 2.0**-133, 1e-35, 1e-9, 1e9, 1e30, 2.0**124):
        x = (X[:3] / np.abs(X[:3]).max() * np.float32(size)).astype(np.float32)
        x[1, 64:] = 0
        want = fk.fused_linear.reference(x, quantized)
        held = np.abs(want) < np.finfo(np.float32).max
        error = np.abs(fk.fused_linear(x, packed).astype("f8") - want)[held].max()
        assert error <= 2.0**-18 * np.abs(want).max() + 2.0**-148, (size, error)
    np.testing.assert_array_equal(fk.fused_linear(np.zeros((3, 203), np.float32), packed), np.zeros((3, 70)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("how", IN_LEVELS, ids=str)
def test_scales_in_two_levels_give_the_bits_of_float32_ones(native, isa, how):
    native.set_isa(isa)
    weight = replace(in_two_levels(*how), activations="int8")
    short = fk.pack_weight(weight)
    long = fk.pack_weight(replace(with_other_scales(weight), activations="int8"))
    x = np.random.default_rng(8).standard_normal((11, 515)).astype(np.float32)
    np.testing.assert_array_equal(bits(fk.fused_linear(x, short)), bits(fk.fused_linear(x, long)[:, :70]))


@pytest.mark.parametrize("how", FORMATS, ids=str)
def test_a_pack_at_the_end_of_a_page(how):
    packed = fk.pack_weight(rounding(*how)).payload.array
    at_the_edge = guard_pages.guarded(packed, "end")
    for rows in (1, 2, 4, 9):
        x = guard_pages.guarded(X[:rows], "end")
        y = runtime.native().linear_packed(x, at_the_edge, *WEIGHT.shape)
        np.testing.assert_array_equal(y, runtime.native().linear_packed(X[:rows], packed, *WEIGHT.shape))


def test_gradients_take_no_notice():
    quantized = rounding("int4", 32)
    rounds, exact = fk.pack_weight(quantized), fk.pack_weight(replace(quantized, activations=None))
    got, want = (fk.fused_linear.vjp(X, each, grad_outputs=X[:, :70])["x"] for each in (rounds, exact))
    np.testing.assert_array_equal(got, want)


def test_the_ledger_and_explain_say_that_x_is_rounded():
    packed = fk.pack_weight(WEIGHT, dtype="int4", group_size=32, activations="int8")
    assert packed.activations == "int8" and "activations='int8'" in repr(packed)
    fk.ledger().reset()
    fk.fused_linear(X, packed)
    assert fk.ledger().ways() == {("fused_linear", "cpu", "int4 by x in int8"): 1}
    assert "x is rounded to int8: each 32 numbers of a row" in str(fk.fused_linear.explain(X, packed))
    plain = fk.pack_weight(WEIGHT, dtype="int4", group_size=32)
    assert "rounded to int8" not in str(fk.fused_linear.explain(X, plain))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dtype": "int8", "activations": "int4"}, "must be None or 'int8', got 'int4'"),
        ({"dtype": "bfloat16", "activations": "int8"}, "must be None, got 'int8'; bfloat16 and float32 packs"),
        ({"weight": quantize(WEIGHT, "int8"), "activations": "int8"}, "must be None, got 'int8'; a QuantizedWeight"),
    ],
)
def test_what_cannot_round_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"pack_weight: activations {message}"):
        fk.pack_weight(**({"weight": WEIGHT} | arguments))


@pytest.mark.parametrize("how", [("int8", 16, True), ("int4", 32, False), ("int4", None, True)], ids=str)
def test_a_program_rounds_as_the_pack_does(how, tmp_path):
    """With the arrays in each call, and packed when the program is loaded."""
    paddle = pytest.importorskip("paddle")
    quantized = rounding(*how)
    layer, x = QuantizedLinear(quantized, BIAS), paddle.to_tensor(X[:9])
    want = fk.fused_linear(X[:9], fk.pack_weight(quantized), BIAS)
    with paddle.no_grad():
        np.testing.assert_array_equal(bits(layer(x).numpy()), bits(want))
    passes.export(layer, tmp_path / "model", [paddle.static.InputSpec([-1, 203], "float32", "x")])
    loaded, plain = passes.load(tmp_path / "model"), passes.load(tmp_path / "model", without=["all"])
    assert loaded.log[0] == f"pass pack_weights: 1 x weight in {how[0]}, x in int8"
    for program in (loaded, plain):
        np.testing.assert_array_equal(bits(program([x])[0].numpy()), bits(want))
