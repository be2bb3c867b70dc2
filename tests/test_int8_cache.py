"""A cache of int8: what stands in it, who sees it, and who refuses it. Parity holds the rest to float64."""

from __future__ import annotations

import numpy as np
import pytest
from fusionkit_backends.cpu import runtime

import fusionkit as fk
from fusionkit import parity, registry, select
from fusionkit.call import describe
from fusionkit.dtypes import FLOATING
from fusionkit.ops.paged_attention import SMALLEST_SCALE, case, quantized
from fusionkit.spec import TensorSpec

ISAS = runtime.native().available_isas()
WRITTEN = fk.paged_attention.spec.mutates
ONE_ROW = {
    "block_tables": np.zeros((1, 1), np.int32),
    "seq_lens_encoder": np.array([5], np.int32),
    "seq_lens_decoder": np.zeros(1, np.int32),
    "seq_lens_this_time": np.array([5], np.int32),
}


@pytest.fixture(params=[*ISAS, "eager"])
def backend(request, native):
    """cpu on each target, and eager."""
    if request.param == "eager":
        return "eager"
    native.set_isa(request.param)
    return "cpu"


def empty_cache(*slots, head_dim):
    codes = {name: np.full((*slots, head_dim), 99, np.int8) for name in WRITTEN[:2]}
    return codes | {name: np.full(slots, np.nan, np.float32) for name in WRITTEN[2:]}


def written(backend, k, v, dtype="float32"):
    """The first 5 slots of the caches after 5 tokens, each [tokens, heads, ...], and the result."""
    k, v = (each.astype(np.dtype(dtype)) for each in (k, v))
    cache = empty_cache(1, k.shape[1], 8, head_dim=k.shape[2])
    with fk.use_backend(backend):
        out = fk.paged_attention(np.ones_like(k), k, v, **cache, **ONE_ROW)
    assert {ran for _, ran, _ in fk.ledger()} == {backend}
    untouched = (cache[name][0, :, 5:] for name in WRITTEN)
    assert all(((rest == 99) | np.isnan(rest)).all() for rest in untouched)
    return [cache[name][0, :, :5].swapaxes(0, 1) for name in WRITTEN], out.astype(np.float64)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("head_dim", [1, 8, 19, 128])
def test_codes_and_scales_are_those_of_the_spec_bit_by_bit(backend, dtype, head_dim):
    rng = np.random.default_rng(head_dim)
    k, v = (rng.standard_normal((5, 2, head_dim)) * 4.0 ** rng.integers(-6, 5, (5, 2, 1)) for _ in "kv")
    found, _ = written(backend, k, v, dtype)
    for tokens, codes, scales in ((k, found[0], found[2]), (v, found[1], found[3])):
        wanted_codes, wanted_scales = quantized(tokens.astype(np.dtype(dtype)))
        np.testing.assert_array_equal(codes, wanted_codes)
        np.testing.assert_array_equal(scales, wanted_scales)


def test_halves_go_to_the_even_code_and_the_largest_to_127(backend):
    k = np.zeros((5, 1, 8))
    k[:, 0] = np.array([127, -127, 0.5, 1.5, 2.5, -2.5, -0.5, 126.5]) * 2.0 ** np.arange(-20, 20, 8)[:, None]
    found, _ = written(backend, k, -k)
    np.testing.assert_array_equal(found[0][:, 0], np.tile([127, -127, 0, 2, 2, -2, 0, 126], (5, 1)))
    np.testing.assert_array_equal(found[2][:, 0], 2.0 ** np.arange(-20, 20, 8))


def test_a_token_of_zeros_has_codes_of_zero_and_the_smallest_scale(backend):
    found, out = written(backend, np.zeros((5, 1, 8)), np.zeros((5, 1, 8)))
    assert not found[0].any() and not found[1].any() and not out.any()
    np.testing.assert_array_equal(found[2], np.float32(SMALLEST_SCALE))


def test_the_largest_floats_keep_their_size(backend):
    k = np.full((5, 1, 8), 1e-3)
    v = np.full((5, 1, 8), np.finfo(np.float32).max / 16)  # sums of five are finite
    _, out = written(backend, k, v)
    np.testing.assert_allclose(out, v, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["k", "v"])
def test_a_token_that_is_not_finite_reaches_those_that_see_it_and_no_other(backend, name, bad):
    rng = np.random.default_rng(4)
    tokens = {each: rng.standard_normal((5, 2, 8)) for each in "kv"}
    _, clean = written(backend, **tokens)
    tokens[name][3, 1, 2] = bad
    found, out = written(backend, **tokens)
    np.testing.assert_allclose(out[:3], clean[:3], rtol=1e-6)
    np.testing.assert_allclose(out[3:, 0], clean[3:, 0], rtol=1e-6)
    assert np.isnan(out[3:, 1]).all()
    codes, scales = found["kv".index(name)], found["kv".index(name) + 2]
    assert not codes[3, 1].any() and np.isnan(scales[3, 1]) and np.isfinite(np.delete(scales.ravel(), 7)).all()


@pytest.mark.parametrize("name", ["decode", "chunk"])
def test_a_step_leaves_what_others_wrote_as_it_was(backend, name):
    counts = {"decode": [1, 1], "chunk": [13, 20]}[name]
    made = parity.arguments_of(fk.paged_attention.spec, case(name, [0, 0], [30, 11], counts, int8=True), "float32")
    given = {each: value.copy() for each, value in made.items()}
    with fk.use_backend(backend):
        fk.paged_attention(**given)
    for each in WRITTEN:
        kept = np.ones(made[each].shape[:3], bool)
        for row, (start, count) in enumerate(zip([30, 11], counts, strict=True)):
            positions = np.arange(start, start + count)
            kept[made["block_tables"][row, positions // 4], :, positions % 4] = False
        np.testing.assert_array_equal(given[each][kept], made[each][kept])
        assert kept.sum() == kept.size - 2 * sum(counts)


def test_how_far_it_is_from_a_cache_of_floats():
    """Within half a code of each key and value: scores move by |q| |k| / 254 at most, and the result by more than 0."""
    rng = np.random.default_rng(6)
    k, v = rng.standard_normal((2, 5, 2, 64))
    _, out = written("cpu", k, v)
    caches = [np.zeros((1, 2, 8, 64), np.float32) for _ in "kv"]
    tokens = [each.astype(np.float32) for each in (np.ones_like(k), k, v)]
    floats = fk.paged_attention(*tokens, *caches, **ONE_ROW)
    difference = np.abs(out - floats).max()
    assert 1e-4 < difference < 0.05


def described(device, cache_dtype="int8", **scales):
    q, k, cache, row = (TensorSpec(shape, dtype, device) for shape, dtype in (
        ((2, 4, 64), "bfloat16"), ((2, 2, 64), "bfloat16"), ((3, 2, 16, 64), cache_dtype), ((1,), "int32")
    ))  # fmt: skip
    lengths = dict.fromkeys(("seq_lens_encoder", "seq_lens_decoder", "seq_lens_this_time"), row)
    lengths["block_tables"] = TensorSpec((1, 3), "int32", device)
    return {"q": q, "k": k, "v": k, "key_cache": cache, "value_cache": cache, **lengths, **scales}


def test_gpu_refuses_it_by_name_and_takes_a_cache_of_floats():
    """As it would say on a machine with a card."""
    gpu = next(each for each in registry.loaded() if each.name == "gpu").kernels["paged_attention"].serving("torch")
    scales = TensorSpec((3, 2, 16), "float32")
    spec = fk.paged_attention.spec
    for given, answer in (({"key_scales": scales, "value_scales": scales}, "no"), ({}, "yes")):
        made = described(None, "int8" if given else "bfloat16", **given)
        bound = {name: made.get(name, each.default) for name, each in spec.parameters.parameters.items()}
        call = describe(spec, bound, None, training=False)
        verdict = select.judge_kernel(gpu, call)
        assert verdict.answer == answer
        assert not given or any("key_scales is not supported: it must be None" in each for each in verdict.reasons)


@pytest.mark.parametrize("device", ["npu", "gcu", "xpu"])
def test_devices_without_the_op_leave_it_to_eager_and_say_so(device):
    scales = TensorSpec((3, 2, 16), "float32", f"{device}:0")
    told = fk.paged_attention.explain(**described(f"{device}:0", key_scales=scales, value_scales=scales))
    assert told.chosen == "eager" and f"{device} does not have paged_attention" in told.reason
