"""Packs of 8 and 4 bits on cpu: their bits, what each call is refused for, and what the ledger and `explain` say."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from fusionkit_backends.cpu import quantized_panels, runtime

import fusionkit as fk
from fusionkit.gguf_blocks import from_gguf
from fusionkit.quantized_arrays import QuantizedArrays
from fusionkit.quantized_weight import QuantizedWeight, code_range, num_groups, quantize
from tests import guard_pages, quantized_layout

ISAS = runtime.native().available_isas()
FORMATS = [(dtype, size, even) for dtype in ("int8", "int4") for size in (16, 32, 128, None) for even in (True, False)]
ROWS = (1, 2, 3, 4, 7, 8, 9, 13, 97)  # on both sides of what the kernels choose by
WEIGHT = np.random.default_rng(0).standard_normal((203, 70)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((97, 203)).astype(np.float32)
BIAS = np.random.default_rng(2).standard_normal(70).astype(np.float32)
IN_LEVELS = [(dtype, size, even) for dtype in ("int8", "int4") for size in (16, 32, 128) for even in (True, False)]


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def in_two_levels(dtype, group_size, symmetric, in_features=515):
    """[in_features, 70], whose scales and minimums are a float16 for 256 rows times an int8 for a group."""
    rng = np.random.default_rng(7)
    groups = num_groups(in_features, group_size)
    block = np.arange(groups) * group_size // 256

    def values():
        units = (rng.uniform(1e-3, 1e-2, (3, 70)) * rng.choice([-1, 1], (3, 70))).astype(np.float16)
        factors = rng.integers(-128, 128, (groups, 70))
        factors[:, :8], factors[:, 8:16] = -128, 0
        return units[block].astype(np.float32) * factors.astype(np.float32)

    low, high = code_range(dtype, symmetric)
    codes = rng.integers(low, high + 1, (in_features, 70)).astype(np.int8 if symmetric else np.uint8)
    return QuantizedWeight(codes, values(), None if symmetric else values(), dtype, group_size)


def with_other_scales(weight):
    """And a column more, whose scales no two levels hold: so all of its pack's are float32."""
    more = np.ones((len(weight.codes), 1), weight.codes.dtype)
    odd = (np.arange(len(weight.scales), dtype=np.float32)[:, None] + 1) / 3
    scales, minimums = (
        None if each is None else np.concatenate([each, odd], axis=1) for each in (weight.scales, weight.minimums)
    )
    codes = np.concatenate([weight.codes, more], axis=1)
    return QuantizedWeight(codes, scales, minimums, weight.dtype, weight.group_size)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype, group_size, symmetric", FORMATS)
def test_a_row_has_the_same_bits_in_any_company(native, isa, dtype, group_size, symmetric):
    """Whatever the rows and the threads, inside use_batch_invariant and outside."""
    native.set_isa(isa)
    packed = fk.pack_weight(quantize(WEIGHT, dtype, group_size, symmetric))
    for x in (X, X.astype(ml_dtypes.bfloat16)):
        with fk.use_batch_invariant():
            want = np.concatenate([fk.fused_linear(row[None], packed, BIAS) for row in x])
        for threads, rows in zip((1, 2, 3) * 3, ROWS, strict=True):
            native.set_num_threads(threads)
            y = fk.fused_linear(x[:rows], packed, BIAS)
            np.testing.assert_array_equal(bits(y), bits(want[:rows]), f"{rows=} {threads=} {x.dtype=}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("group_size", [16, 32, 128, None])
def test_numbers_beside_a_much_larger_one_keep_their_bits(native, isa, dtype, group_size):
    """Each run of some rows has a large number, as a model's residuals have them."""
    native.set_isa(isa)
    weight = WEIGHT.copy()
    weight[::32] = 0  # y is what the small numbers give
    quantized = quantize(weight, dtype, group_size)
    packed, values = fk.pack_weight(quantized), quantized.dequantize()
    x = X[:9].copy()
    x[::2, ::32] *= 4000
    for kind in (np.float32, np.float16, ml_dtypes.bfloat16):
        given = x.astype(kind)
        want = given.astype(np.float64) @ values
        y = fk.fused_linear(given, packed).astype(np.float64)
        bound = 2.0**-16 * np.sqrt(np.mean(want**2)) + 0.51 * float(ml_dtypes.finfo(kind).eps) * np.abs(want)
        assert (np.abs(y - want) <= bound).all(), kind


@pytest.mark.parametrize("isa", ISAS)
def test_what_bfloat16_loses_is_within_its_bound_and_no_more_digits_are_multiplied(native, isa):
    """A weight picks one small number of a run: y has it in units of 2^-14 of the largest's power of two."""
    native.set_isa(isa)
    weight = np.zeros((64, 70), np.float32)
    weight[[5, 40]] = 7  # the scale is 1
    packed = fk.pack_weight(weight, dtype="int4")
    x = np.ones((5, 64), np.float32)
    small, kept = 145 * 2.0**-16, 36 * 2.0**-14  # 36.25 units
    x[:, 5], x[:, 40] = small, 0
    x[4, 6:32] = small  # more of them: they need the second digit
    y = fk.fused_linear(x.astype(ml_dtypes.bfloat16), packed)
    want = np.array([7 * kept] * 4 + [7 * small]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(y, want[:, None].repeat(70, axis=1))
    assert small - kept <= 2.0**-16 * np.linalg.norm(x[0, :32])
    np.testing.assert_array_equal(fk.fused_linear(x, packed), np.full((5, 70), 7 * small, np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_rows_that_are_not_finite_are_multiplied_as_floats(native, isa, dtype):
    native.set_isa(isa)
    quantized = quantize(np.abs(WEIGHT) + 1, "int8", 32, symmetric=False)
    packed = fk.pack_weight(quantized)
    x = X[:6].astype(dtype)
    clean = fk.fused_linear(x, packed, BIAS)
    x[1, 7], x[3, 40], x[5, 0] = np.inf, -np.inf, np.nan
    y = fk.fused_linear(x, packed, BIAS)
    np.testing.assert_array_equal(bits(y[::2][:2]), bits(clean[::2][:2]))
    assert (y[1] == np.inf).all() and (y[3] == -np.inf).all() and np.isnan(y[5].astype(np.float32)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_rows_of_any_size_keep_their_precision(native, isa):
    native.set_isa(isa)
    quantized = quantize(WEIGHT, "int4", 32)
    packed, values = fk.pack_weight(quantized), quantized.dequantize()
    for size in (2.0**-149, 2.0**-133, 1e-35, 1e-9, 1e9, 1e30, 2.0**124):
        x = (X[:3] / np.abs(X[:3]).max() * np.float32(size)).astype(np.float32)
        want = x.astype(np.float64) @ values
        held = np.abs(want) < np.finfo(np.float32).max
        y = fk.fused_linear(x, packed).astype(np.float64)
        error = np.abs(y - want)[held].max()
        assert error <= 2.0**-18 * np.abs(want).max() + 2.0**-148, (size, error)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_a_gguf_tensor_against_float64(native, isa, type_name):
    gguf = pytest.importorskip("gguf")
    native.set_isa(isa)
    rng = np.random.default_rng(3)
    kind = gguf.GGMLQuantizationType[type_name]
    blocks = rng.integers(0, 256, (67, 512 // gguf.GGML_QUANT_SIZES[kind][0], gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    at = slice(208, 210) if type_name == "Q6_K" else slice(0, 4) if type_name in ("Q4_1", "Q4_K") else slice(0, 2)
    blocks[..., at] = rng.uniform(1e-3, 1e-2, (*blocks.shape[:2], (at.stop - at.start) // 2)).astype("f2").view("u1")
    blocks = blocks.reshape(len(blocks), -1)
    weight = gguf.quants.dequantize(blocks, kind).T.astype(np.float64)
    packed = fk.pack_weight(from_gguf(blocks, type_name))
    for rows in (1, 20):
        x = rng.standard_normal((rows, 512)).astype(np.float32)
        want = x.astype(np.float64) @ weight
        error = np.abs(fk.fused_linear(x, packed) - want).max() / np.sqrt(np.mean(want**2))
        assert error < 128 * 2.0**-23, error


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype, group_size, symmetric", IN_LEVELS)
def test_scales_in_two_levels_give_the_bits_of_float32_ones(native, isa, dtype, group_size, symmetric):
    """By digits, as floats (a row of infinity) and in gradients."""
    native.set_isa(isa)
    weight = in_two_levels(dtype, group_size, symmetric)
    short, long = fk.pack_weight(weight), fk.pack_weight(with_other_scales(weight))
    assert scale_bytes(short) == 1 and scale_bytes(long) == 4
    rng = np.random.default_rng(8)
    x, dy = (rng.standard_normal((9, size)).astype(np.float32) for size in (515, 71))
    x[5, 300], dy[:, 70] = np.inf, 0
    for rows in (1, 9):
        y = fk.fused_linear(x[:rows], short)
        np.testing.assert_array_equal(bits(y), bits(fk.fused_linear(x[:rows], long)[:, :70]))
        dx = fk.fused_linear.vjp(x[:rows], short, grad_outputs=dy[:rows, :70])["x"]
        np.testing.assert_array_equal(dx, fk.fused_linear.vjp(x[:rows], long, grad_outputs=dy[:rows])["x"])
    want = x[:5].astype(np.float64) @ weight.dequantize()
    error = np.abs(fk.fused_linear(x[:5], short) - want).max() / np.sqrt(np.mean(want**2))
    assert error < 128 * 2.0**-23, error


def scale_bytes(packed):
    """What the header says that a group has for a scale; 1: they are in two levels."""
    return packed.payload.array[14]


@pytest.mark.parametrize("type_name, bits_a_weight", [("Q4_K", 4.75), ("Q6_K", 8.625)])
def test_ggufs_blocks_of_256_have_scales_in_two_levels(type_name, bits_a_weight):
    """As llama.cpp's quantizer writes Q6_K too, which gives the largest scale of each block the factor -128."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[type_name]
    rng = np.random.default_rng(9)
    blocks = rng.integers(0, 256, (128, 2, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    floats = rng.choice([-1, 1], (128, 2, 2)) * rng.uniform(1e-5, 1e-2, (128, 2, 2))  # subnormal ones too
    if type_name == "Q6_K":
        blocks[..., 192], blocks[..., 208:] = 128, floats[..., :1].astype("f2").view("u1")
    else:
        blocks[..., :4] = floats.astype("f2").view("u1")
    packed = fk.pack_weight(from_gguf(blocks.reshape(128, -1), type_name))
    assert scale_bytes(packed) == 1 and packed.num_bytes == 64 + bits_a_weight / 8 * 512 * 128


@pytest.mark.parametrize("block", [(128, -128, 1), (-129, 5), (2.0**-149, 1), (1 / 3, 1)], ids=str)
def test_one_block_that_two_levels_do_not_hold_makes_all_scales_float32(block):
    weight = in_two_levels("int8", 32, True)
    for factors, size in (((-128, 127, 1), 1), ((128, -127, 1), 1), (block, 4)):
        scales = weight.scales.copy()
        scales[8:16, 69] = [*factors, *[0] * (8 - len(factors))]
        assert scale_bytes(fk.pack_weight(replace(weight, scales=scales))) == size, factors


def test_a_pack_of_floats_is_that_of_their_codes_and_a_copy_of_it_works():
    how = {"dtype": "int4", "group_size": 32, "symmetric": False}
    want = fk.fused_linear(X, fk.pack_weight(quantize(WEIGHT, **how)))
    packed = fk.pack_weight(WEIGHT, **how)
    assert (packed.dtype, packed.group_size, packed.symmetric, packed.shape) == ("int4", 32, False, WEIGHT.shape)
    for each in (packed, pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed)):
        np.testing.assert_array_equal(fk.fused_linear(X, each), want)


def test_a_pack_that_paddle_has_used_is_copied_without_the_tensor_of_its_bytes():
    paddle = pytest.importorskip("paddle")
    packed = fk.pack_weight(WEIGHT, dtype="int8")
    fresh = len(pickle.dumps(packed))
    y = fk.fused_linear(paddle.to_tensor(X), packed)
    assert len(pickle.dumps(packed)) == fresh
    for each in (pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed)):
        assert not np.shares_memory(each.payload.array, packed.payload.array)
        assert each.payload.tensor.data_ptr() == each.payload.array.ctypes.data
        np.testing.assert_array_equal(fk.fused_linear(paddle.to_tensor(X), each).numpy(), y.numpy())


def test_what_is_no_operand_is_refused_with_what_to_do():
    quantized = quantize(WEIGHT, "int8")
    with pytest.raises(TypeError, match="got QuantizedWeight .*Give a tensor, or what fusionkit.pack_weight returns"):
        fk.fused_linear(X, quantized)
    with pytest.raises(TypeError, match="weight must be an array or a QuantizedWeight, got a PackedWeight.*what was"):
        fk.fused_linear.reference(X, fk.pack_weight(quantized))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype, group_size, symmetric", FORMATS)
def test_a_pack_has_the_bytes_of_its_layout(native, isa, dtype, group_size, symmetric):
    """However the codes lie in memory; float32 scales too."""
    native.set_isa(isa)
    weights = [
        quantize(weight, dtype, group_size, symmetric)
        for weight in (WEIGHT, WEIGHT[:16, :64], WEIGHT[:3, :1], WEIGHT * np.float32(1e-9))
    ]
    if group_size is not None:
        weights += [in_two_levels(dtype, group_size, symmetric, in_features) for in_features in (5, 130, 515)]
    for quantized in weights:
        want = quantized_layout.quantized_panels(quantized)
        by_columns = replace(quantized, codes=np.asfortranarray(quantized.codes))
        for each in (quantized, by_columns, replace(quantized, scales=np.asfortranarray(quantized.scales))):
            np.testing.assert_array_equal(quantized_panels.quantized_panels(each), want)
        rounding = replace(quantized, activations="int8")
        want = quantized_layout.quantized_panels(rounding)
        np.testing.assert_array_equal(quantized_panels.quantized_panels(rounding), want)


def test_bytes_at_any_address_give_the_same_bits():
    array = quantized_panels.quantized_panels(quantize(WEIGHT, "int4", 32, False))
    for shift in (1, 4, 63):
        moved = np.empty(array.size + 64, np.uint8)[shift:][: array.size]
        moved[:] = array
        for rows in (3, 9):
            y, want = (runtime.native().linear_packed(X[:rows], each, *WEIGHT.shape) for each in (moved, array))
            np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_paddle_tensors(dtype):
    paddle = pytest.importorskip("paddle")
    quantized = quantize(WEIGHT, "int8", 64)
    packed = fk.pack_weight(paddle.to_tensor(WEIGHT), dtype="int8", group_size=64)
    x = paddle.to_tensor(X).cast(dtype)
    y = fk.fused_linear(x, packed, paddle.to_tensor(BIAS))
    want = fk.fused_linear.reference(x.cast("float32").numpy(), quantized, BIAS)
    epsilon = {"float32": 2.0**-17, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.cast("float32").numpy(), want, rtol=epsilon, atol=epsilon * np.sqrt(np.mean(want**2)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype, group_size, symmetric", FORMATS)
def test_the_gradients_bits_are_those_of_a_product_with_the_transpose(native, isa, dtype, group_size, symmetric):
    """Of its values in float32, whatever the rows, the threads and dy's dtype; so the batch does not matter either."""
    native.set_isa(isa)
    weight = np.random.default_rng(4).standard_normal((70, 203)).astype(np.float32)
    quantized = quantize(weight, dtype, group_size, symmetric)
    packed = fk.pack_weight(quantized)
    with fk.use_batch_invariant():
        transpose = fk.pack_weight(quantized.dequantize().T.astype(np.float32))
    for dy in (X, X.astype(ml_dtypes.bfloat16)):
        with fk.use_batch_invariant():
            want = fk.fused_linear(dy, transpose)
        for threads, rows in zip((1, 2, 3) * 3, ROWS, strict=True):
            native.set_num_threads(threads)
            got = fk.fused_linear.vjp(np.zeros((rows, 70), dy.dtype), packed, grad_outputs=dy[:rows])
            assert got.keys() == {"x"}  # the pack has none
            np.testing.assert_array_equal(bits(got["x"]), bits(want[:rows]), f"{rows=} {threads=} {dy.dtype=}")


def test_the_gradient_of_a_deep_weight_is_made_in_pieces_with_the_same_bits():
    """A panel takes 8.4 MB, so each is a piece; and 64 MB of sums hold 511 rows of dx."""
    rng = np.random.default_rng(6)
    shape = 32800, 130
    codes = rng.integers(-8, 8, shape, np.int8)
    quantized = QuantizedWeight(codes, rng.uniform(0.5, 1, (1, 130)).astype(np.float32), None, "int4")
    dy = rng.standard_normal((513, 130), dtype=np.float32).astype(ml_dtypes.bfloat16)
    x = np.empty((513, shape[0]), dy.dtype)
    dx = fk.fused_linear.vjp(x, fk.pack_weight(quantized), grad_outputs=dy)["x"]
    with fk.use_batch_invariant():
        want = fk.fused_linear(dy, fk.pack_weight(quantized.dequantize().T.astype(np.float32)))
    np.testing.assert_array_equal(bits(dx), bits(want))


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)], ids=["both", "x", "bias"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_of_paddle_tensors_through_a_pack(dtype, wanted):
    paddle = pytest.importorskip("paddle")
    quantized = quantize(WEIGHT, "int4", 32, False)
    packed = fk.pack_weight(quantized)
    x, dy = (paddle.to_tensor(each).cast(dtype) for each in (X.reshape(1, 97, 203), X[:, :70].reshape(1, 97, 70)))
    bias = paddle.to_tensor(BIAS)
    x.stop_gradient, bias.stop_gradient = (not each for each in wanted)
    fk.ledger().reset()
    fk.fused_linear(x, packed, bias).backward(dy)
    way = ("fused_linear", "cpu", "int4 dequantized to panels of its transpose, for x's gradient")
    assert fk.ledger().ways().get(way, 0) == wanted[0]
    exact = dy.cast("float32").numpy().astype(np.float64)
    want = {"x": exact @ quantized.dequantize().T, "bias": exact.sum((0, 1))}
    for name, tensor in (("x", x), ("bias", bias)):
        assert (tensor.grad is None) == tensor.stop_gradient
        if tensor.grad is not None:
            assert tensor.grad.dtype == tensor.dtype
            epsilon = {"float32": 2.0**-17, "bfloat16": 2.0**-8, "float16": 2.0**-11}[tensor.dtype.name.lower()]
            error = np.abs(tensor.grad.cast("float32").numpy() - want[name])
            assert np.all(error <= epsilon * np.maximum(np.abs(want[name]), np.sqrt(np.mean(want[name] ** 2))))


def test_the_gradient_of_x_by_finite_differences():
    """Of f(x) = sum(y * dy), which is linear in x: a step of any size will do, and a large one rounds least."""
    packed = fk.pack_weight(WEIGHT, dtype="int8", group_size=32)
    rng = np.random.default_rng(5)
    x, direction, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((9, 203), (9, 203), (9, 70)))
    dx = fk.fused_linear.vjp(x, packed, BIAS, grad_outputs=dy)["x"]
    ahead, behind = (fk.fused_linear(x + step * direction, packed, BIAS).astype("f8") for step in (1, -1))
    assert np.sum(dx * direction, dtype="f8") == pytest.approx(np.sum((ahead - behind) / 2 * dy), rel=1e-5)


def test_x_is_not_kept_and_the_pack_has_no_gradient():
    paddle = pytest.importorskip("paddle")
    import weakref

    packed = fk.pack_weight(WEIGHT, dtype="int8")
    assert packed.stop_gradient
    with pytest.raises(AttributeError, match="cannot assign to field 'stop_gradient'"):
        packed.stop_gradient = False
    leaf = paddle.to_tensor(X)
    leaf.stop_gradient = False
    x = leaf * 1
    kept, y = weakref.ref(x), fk.fused_linear(x, packed)
    del x
    assert kept() is None
    y.backward()
    assert leaf.grad is not None


def test_a_program_that_is_traced_holds_no_pack():
    paddle = pytest.importorskip("paddle")
    packed = fk.pack_weight(WEIGHT, dtype="int8")

    @paddle.jit.to_static(full_graph=True)
    def program(x):
        return fk.fused_linear(x, packed)

    with paddle.no_grad(), pytest.raises(ValueError, match="weight must be a tensor while a program is traced"):
        program(paddle.to_tensor(X))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (16, 64)])
def test_weights_without_elements_and_of_whole_panels(shape):
    packed = fk.pack_weight(np.full(shape, 7, np.float32), dtype="int4", group_size=16)  # the scale is 1
    for rows in (0, 1, 9):
        y = fk.fused_linear(np.ones((rows, shape[0]), np.float32), packed, np.arange(shape[1], dtype=np.float32))
        np.testing.assert_array_equal(y, np.tile(7 * shape[0] + np.arange(shape[1]), (rows, 1)))
        dx = fk.fused_linear.vjp(np.ones((rows, shape[0]), np.float32), packed, grad_outputs=np.ones_like(y))["x"]
        np.testing.assert_array_equal(dx, np.full((rows, shape[0]), 7 * shape[1]))


def test_the_ledger_counts_the_ways_and_explain_says_what_a_pack_can_do():
    packs = {dtype: fk.pack_weight(WEIGHT, dtype=dtype, group_size=32) for dtype in ("int8", "int4")}
    for packed in packs.values():
        for x in (X[0], X[:8], X[:9], X[:9].reshape(3, 3, -1)):
            fk.fused_linear(x, packed)
            fk.fused_linear(x.astype(ml_dtypes.bfloat16), packed)
    assert fk.ledger().ways() == {("fused_linear", "cpu", f"{dtype} by digits of x"): 8 for dtype in packs}
    explained = fk.fused_linear.explain(X, packs["int4"])
    assert explained.chosen == "cpu" and "a quantized pack: for any number of rows of x" in str(explained)
    assert "eager  no       weight.packed_by must be None or eager, got cpu" in str(explained)
    assert "quantized" not in str(fk.fused_linear.explain(X, WEIGHT))
    for dtype, chosen in (("int8", "cpu"), ("int4", "cpu"), ("float32", None)):
        asked = fk.fused_linear.explain(X, fk.TensorSpec(WEIGHT.shape, dtype, packed_by="cpu"), training=True)
        assert asked.chosen == chosen
        assert ("cpu    no       weight is packed, for inference only, and gradients" in str(asked)) == (chosen is None)


def test_codes_in_arrays_have_no_gradient_of_x():
    paddle = pytest.importorskip("paddle")
    x = paddle.to_tensor(X)
    x.stop_gradient = False
    arrays = QuantizedArrays.of(quantize(WEIGHT, "int8"))
    with pytest.raises(fk.NoBackendError, match="weight is packed, for inference only, and gradients are wanted"):
        fk.fused_linear(x, dataclasses.replace(arrays, codes=paddle.to_tensor(arrays.codes)))


def test_other_backends_refuse_by_name():
    packed = fk.pack_weight(WEIGHT, dtype="int8")
    with fk.use_backend("eager"):
        with pytest.raises(fk.NoBackendError, match="\n  eager: packs no int8 or int4 weights\n"):
            fk.pack_weight(WEIGHT, dtype="int8")
        with pytest.raises(fk.NoBackendError, match="\n  eager: weight.packed_by must be None or eager, got cpu\n"):
            fk.fused_linear(X, packed)
    with pytest.raises(ValueError, match="weight must be of dtype float32 .*, got int8"):
        fk.fused_linear.explain(X, fk.TensorSpec(WEIGHT.shape, "int8"))  # of no pack
    for device, why in (("npu:0", "npu does not have fused_linear"), ("gpu:0", "weight.packed_by must be None")):
        explained = fk.fused_linear.explain(X, packed, device=device)
        assert explained.chosen is None and f"{device[:3]}    no       {why}" in str(explained)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"weight": quantize(WEIGHT, "int8"), "dtype": "int4"}, "dtype must be None, got 'int4'; a QuantizedWeight is"),
        ({"weight": quantize(WEIGHT, "int8"), "group_size": 32}, "group_size must be None, got 32; a QuantizedWeight"),
        ({"weight": quantize(WEIGHT, "int8"), "symmetric": False}, "symmetric must be True, got False; a QuantizedW"),
        ({"dtype": "int8", "group_size": 48}, "group_size must be 16, 32, 64, 128 or None"),
        ({"dtype": "int8", "weight": WEIGHT[0]}, r"weight must be \[in_features, out_features\]"),
        ({"dtype": "int4", "weight": WEIGHT.astype("i4")}, "weight must be .* got .*int32"),
        ({"dtype": "int4", "weight": WEIGHT.astype("f8")}, "weight must be .* got .*float64"),
        ({"dtype": "int4", "symmetric": "no"}, "symmetric must be True or False, got 'no'"),
        ({"dtype": "int4", "symmetric": None}, "symmetric must be True or False, got None"),
        ({"dtype": "int4", "group_size": 32.0}, "group_size must be 16, 32, 64, 128 or None"),
        ({"dtype": "bfloat16", "symmetric": False}, "symmetric must be True, got False; bfloat16 and float32 packs"),
    ],
)
def test_bad_packs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"pack_weight: {message}"):
        fk.pack_weight(**({"weight": WEIGHT} | arguments))


DAMAGE = {  # offset, bytes
    "of this version": (8, b"\2"),
    "a damaged header": (12, b"\5"),
    "a damaged header, minimums": (13, b"\2"),
    "a damaged header, scales": (14, b"\3"),
    "a damaged header, activations": (15, b"\2"),
    "a damaged header, a size": (23, b"\x80"),
    "a damaged header, groups": (32, b"\x11"),
    "a damaged header, no groups": (32, b"\0"),
    "whole": (40, b"\0"),
    "a damaged header, groups that split runs": (32, b"\x30"),
    "whole, other groups": (32, b"\x40"),
    "whole, scales in two levels": (14, b"\1"),
    r"a weight of \[203, 70\]": (24, b"\x45"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_pack_is_refused(what):
    array = quantized_panels.quantized_panels(quantize(WEIGHT, "int4", 32))
    offset, replaced = DAMAGE[what]
    assert array[offset] != replaced[0]
    array[offset] = replaced[0]
    with pytest.raises(ValueError, match=f"fused_linear_packed: packed must be .*{what.split(',')[0]}"):
        runtime.native().linear_packed(X, array, *WEIGHT.shape)
    with pytest.raises(ValueError, match=f"fused_linear_packed_grad: packed must be .*{what.split(',')[0]}"):
        runtime.native().linear_packed_grad(array, *WEIGHT.shape, X[:, :70])
    with pytest.raises(ValueError, match="packed must be whole, "):
        whole = quantized_panels.quantized_panels(quantize(WEIGHT, "int4", 32))
        runtime.native().linear_packed(X, whole[:-64], *WEIGHT.shape)


@pytest.mark.parametrize(
    "dtype, group_size, symmetric, has_levels",
    [(*each, False) for each in FORMATS] + [(*each, True) for each in IN_LEVELS],
)
def test_a_pack_at_the_end_of_a_page(dtype, group_size, symmetric, has_levels):
    how = dtype, group_size, symmetric
    array = quantized_panels.quantized_panels(in_two_levels(*how, 203) if has_levels else quantize(WEIGHT, *how))
    assert array.ctypes.data % 64 == 0 and array.nbytes % 64 == 0
    at_the_edge = guard_pages.guarded(array, "end")
    for rows in (1, 9):
        y = runtime.native().linear_packed(X[:rows], at_the_edge, *WEIGHT.shape)
        np.testing.assert_array_equal(y, runtime.native().linear_packed(X[:rows], array, *WEIGHT.shape))
        dx, want = (
            runtime.native().linear_packed_grad(each, *WEIGHT.shape, X[:rows, :70])[0] for each in (at_the_edge, array)
        )
        np.testing.assert_array_equal(dx, want)
