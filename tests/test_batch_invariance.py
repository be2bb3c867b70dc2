"""Inside `use_batch_invariant` a row's result has the same bits alone and in company, at any place, with any number of
threads; for paged_attention also in however many calls its tokens come. Every kernel that declares it is held to it.
"""

from __future__ import annotations

import itertools
import json

import ml_dtypes  # noqa: F401  NumPy then knows bfloat16
import numpy as np
import pytest
from fusionkit_backends.cpu import runtime

import fusionkit as fk
from fusionkit import parity, registry
from fusionkit.dtypes import FLOATING
from fusionkit.ops import load_spec

BACKEND = "cpu"
NUM_ROWS = 100  # above a tile of the blocked product
COUNTS = (2, 5, 8, 9, 13, 33, 97)  # of rows in a call: on both sides of what the kernels choose by
THREADS = (1, 2, 3)
LAYERS = ((64, 200), (577, 70), (1030, 33))  # in_features, out_features
ISAS = runtime.native().available_isas()


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def random(rng, shape, dtype):
    return rng.standard_normal(shape).astype(np.float32).astype(np.dtype(dtype))


def norm(rng, dtype):
    x, weight = random(rng, (NUM_ROWS, 577), dtype), random(rng, 577, dtype)
    return lambda rows: (fk.fusion_rms_norm(x[rows], weight),)


def add_norm(rng, dtype):
    x, residual = (random(rng, (NUM_ROWS, 577), dtype) for _ in range(2))
    weight = random(rng, 577, "float32")
    return lambda rows: fk.fusion_add_rms_norm(x[rows], residual[rows], weight)


def rope(rng, dtype):
    """Tokens of many requests are one sequence, each with its own position."""
    q, k = random(rng, (1, NUM_ROWS, 3, 34), dtype), random(rng, (1, NUM_ROWS, 1, 34), dtype)
    angles = rng.standard_normal((64, 17)).astype(np.float32)
    positions = rng.integers(0, 64, (1, NUM_ROWS))

    def call(rows):
        rotated = fk.fusion_rope(
            q[:, rows], k[:, rows], np.cos(angles), np.sin(angles), position_ids=positions[:, rows]
        )
        return [each[0] for each in rotated]

    return call


def swiglu(rng, dtype):
    both = random(rng, (NUM_ROWS, 2 * 161), dtype)  # halves of one product's result, as the model has them
    return lambda rows: (fk.swiglu(both[rows, :161], both[rows, 161:]),)


def linear(rng, dtype):
    layers = [(random(rng, (NUM_ROWS, k), dtype), random(rng, (k, n), dtype), random(rng, n, dtype)) for k, n in LAYERS]
    return lambda rows: [
        *(fk.fused_linear(x[rows], weight) for x, weight, _ in layers),
        *(fk.fused_linear(x[rows], weight.astype(np.float32), bias) for x, weight, bias in layers[1:]),
        fk.fused_linear(layers[0][0][rows], np.ascontiguousarray(layers[0][1].T).T),
    ]


CALLS = {
    "fused_linear": linear,
    "fusion_add_rms_norm": add_norm,
    "fusion_rms_norm": norm,
    "fusion_rope": rope,
    "swiglu": swiglu,
}


def test_every_kernel_that_declares_it_is_tested_here():
    declared = {
        (plugin.name, op)
        for plugin in registry.plugins()
        if plugin.backend is not None
        for op, kernel in plugin.backend.kernels.items()
        if kernel.batch_invariant
    }
    assert declared == {(BACKEND, op) for op in (*CALLS, "paged_attention")}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("op", CALLS)
def test_a_row_has_the_same_bits_alone_and_in_company(native, op, dtype, isa):
    native.set_isa(isa)
    call = CALLS[op](np.random.default_rng(0), dtype)
    with fk.use_backend(BACKEND), fk.use_batch_invariant():
        native.set_num_threads(1)
        alone = [call(slice(row, row + 1)) for row in range(NUM_ROWS)]
        for threads, count in itertools.product(THREADS, COUNTS):
            native.set_num_threads(threads)
            first = (7 * count + threads) % (NUM_ROWS - count + 1)
            together = call(slice(first, first + count))
            for result, expected in zip(together, zip(*alone[first : first + count], strict=True), strict=True):
                np.testing.assert_array_equal(bits(result), bits(np.concatenate(expected)), f"{threads=} {count=}")
    assert {backend for _, backend, _ in fk.ledger()} == {BACKEND}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_weight_gives_the_bits_of_the_weight(native, dtype, isa):
    native.set_isa(isa)
    rng = np.random.default_rng(1)
    for in_features, out_features in LAYERS:
        x, weight = random(rng, (NUM_ROWS, in_features), dtype), random(rng, (in_features, out_features), dtype)
        with fk.use_batch_invariant():
            packed = fk.pack_weight(weight)
            expected = bits(fk.fused_linear(x, weight))
            for count in (1, *COUNTS):
                np.testing.assert_array_equal(bits(fk.fused_linear(x[:count], packed)), expected[:count])


TOO_LARGE_TO_LAY_OUT_AT_ONCE = ((60, 33000), (1500, 4500))  # rows, in_features


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows, in_features", TOO_LARGE_TO_LAY_OUT_AT_ONCE)
def test_a_product_in_segments_has_the_bits_of_fewer_rows(native, rows, in_features, dtype, isa):
    native.set_isa(isa)
    rng = np.random.default_rng(2)
    shapes = (rows, in_features), (in_features, 35), 35
    x, weight, bias = (random(rng, shape, dtype) for shape in shapes)
    first, last = slice(0, 3), slice(rows - 30, rows)
    with fk.use_backend(BACKEND), fk.use_batch_invariant():
        for each, added in itertools.product((weight, np.asfortranarray(weight)), (None, bias)):
            together = bits(fk.fused_linear(x, each, added))
            for few in (first, last):
                np.testing.assert_array_equal(together[few], bits(fk.fused_linear(x[few], each, added)))
        np.testing.assert_array_equal(bits(fk.fused_linear(x, fk.pack_weight(weight), bias)), together)
        exact = x.astype(np.float64) @ weight.astype(np.float64) + bias.astype(np.float64)
        got = fk.fused_linear(x, weight, bias).astype(np.float64)
    assert np.abs(got - exact).max() < (1e-5 if dtype == "float32" else 2**-8) * np.abs(exact).max()


def test_a_pack_in_a_layout_that_onednn_alone_reads_is_refused(native):
    """As its header tells: 0 columns a panel. oneDNN 3.6 on AVX-512 chooses panels that the own loop reads."""
    packed = fk.pack_weight(np.ones((576, 40), np.float32))
    packed.payload.array[80:96] = 0
    cure = "a damaged header. Pack the weight again"
    if native.matmul_library() == "onednn":
        cure = r"weight inside fusionkit.use_batch_invariant\(\)"
    with fk.use_batch_invariant(), pytest.raises(ValueError, match=cure):
        fk.fused_linear(np.ones((2, 576), np.float32), packed)


def test_own_panels_without_columns_are_refused(native):
    native.set_isa(ISAS[-1])
    packed = fk.pack_weight(np.ones((576, 40), np.float32))
    packed.payload.array[80:96] = 0
    with pytest.raises(ValueError, match="a damaged header. Pack the weight again"):
        fk.fused_linear(np.ones((2, 576), np.float32), packed)


class Conversation:
    """The tokens of one row, attended to in calls of any length, beside other rows."""

    def __init__(self, rng, dtype, heads, kv_heads, head_dim, length, window, block_size=16, int8=False):
        self.rng, self.length, self.window, self.block_size, self.int8 = rng, length, window, block_size, int8
        self.q = random(rng, (length, heads, head_dim), dtype)
        self.k, self.v = (random(rng, (length, kv_heads, head_dim), dtype) for _ in range(2))
        self.blocks = -(-max(length, 3 + 8) // block_size)  # the other rows' tokens end there
        self.others = [random(rng, (64, count, head_dim), dtype) for count in (heads, kv_heads, kv_heads)]

    def attend(self, ends, others=0):
        """The results of all tokens, in calls that end at `ends`; `others` rows stand before and as many behind."""
        caches = self._empty_caches(others)
        results, begin = [], 0
        for end in ends:
            counts = [*self.rng.integers(1, 9, others), end - begin, *self.rng.integers(1, 9, others)]
            starts = [*[3] * others, begin, *[0] * others]
            results.append(self._call(caches, begin, end, counts, starts, others))
            begin = end
        return np.concatenate(results)

    def _empty_caches(self, others):
        slots = self.blocks * (2 * others + 1), self.k.shape[1], self.block_size
        dtype = np.int8 if self.int8 else self.k.dtype
        caches = {name: np.zeros((*slots, self.k.shape[2]), dtype) for name in ("key_cache", "value_cache")}
        scales = {name: np.full(slots, np.nan, np.float32) for name in ("key_scales", "value_scales") if self.int8}
        return caches | scales

    def _call(self, caches, begin, end, counts, starts, others):
        before, behind = sum(counts[:others]), sum(counts[others + 1 :])
        tokens = [
            np.concatenate([other[:before], own[begin:end], other[:behind]])
            for own, other in zip((self.q, self.k, self.v), self.others, strict=True)
        ]
        is_prefill = [start == 0 for start in starts]
        out = fk.paged_attention(
            *tokens,
            **caches,
            block_tables=np.arange(len(caches["key_cache"]), dtype=np.int32).reshape(len(counts), -1)[::-1].copy(),
            seq_lens_encoder=np.array(counts, np.int32) * is_prefill,
            seq_lens_decoder=np.array(starts, np.int32),
            seq_lens_this_time=np.array(counts, np.int32),
            window=self.window,
        )
        return out[before : before + end - begin]


SHAPES = ((9, 3, 64, 0), (2, 2, 17, 0), (4, 1, 32, 40))  # heads, kv_heads, head_dim, window


KINDS = [*((dtype, False) for dtype in FLOATING), ("float32", True), ("bfloat16", True)]  # of tokens; int8 in the cache


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype, int8", KINDS)
@pytest.mark.parametrize("heads, kv_heads, head_dim, window", SHAPES)
def test_attention_has_the_same_bits_in_any_calls(native, heads, kv_heads, head_dim, window, dtype, int8, isa):
    native.set_isa(isa)
    length = 290  # beyond a block of keys, 256
    row = Conversation(np.random.default_rng(2), dtype, heads, kv_heads, head_dim, length, window, int8=int8)
    one_by_one = [250, *range(251, length + 1)]
    schedules = ([1, 2, 3, 100, 110, 257, 258, length], [64, 65, 255, length], one_by_one)
    with fk.use_backend(BACKEND), fk.use_batch_invariant():
        native.set_num_threads(1)
        whole = bits(row.attend([length]))
        for (ends, others), threads in zip(itertools.product(schedules, (0, 2)), THREADS * 2, strict=True):
            native.set_num_threads(threads)
            np.testing.assert_array_equal(bits(row.attend(ends, others)), whole, f"{ends=} {others=} {threads=}")


# A single token's keys are packed a panel at a time, and its values not at all.
TOKENS = (  # heads, kv_heads, head_dim, window, block_size
    (8, 1, 80, 0, 7),  # blocks end inside of a vector of keys
    (6, 6, 16, 0, 64),
    (7, 1, 128, 300, 16),  # a window that begins in the block of 256 keys before
    (3, 1, 33, 5, 32),
    (100, 1, 8, 0, 16),  # more heads than a block of queries
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype, int8", KINDS)
@pytest.mark.parametrize("heads, kv_heads, head_dim, window, block_size", TOKENS)
def test_a_token_has_the_bits_of_the_prefill(native, heads, kv_heads, head_dim, window, block_size, dtype, int8, isa):
    native.set_isa(isa)
    rng = np.random.default_rng(5)
    with fk.use_backend(BACKEND), fk.use_batch_invariant():
        for length in (1, 15, 63, 65, 255, 256, 257, 511, 513, 577):
            row = Conversation(rng, dtype, heads, kv_heads, head_dim, length, window, block_size, int8)
            whole, alone = row.attend([length]), row.attend([length - 1, length], others=1)
            np.testing.assert_array_equal(bits(alone[-1]), bits(whole[-1]), f"{length=}")


@pytest.mark.parametrize("op", ["fused_linear", "paged_attention"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_agrees_with_float64(op, dtype, parity_of):
    with fk.use_batch_invariant():
        for case in load_spec(op).cases:
            if not case.llama:
                parity.check(getattr(fk, op), case, dtype, BACKEND, "numpy")
    parity_of(f"{BACKEND} (batch invariant)", "numpy")


def test_a_kernel_that_does_not_promise_it_is_not_chosen():
    x, weight = np.ones((2, 8), np.float32), np.ones((8, 4), np.float32)
    with fk.use_batch_invariant():
        explained = fk.fused_linear.explain(x, weight)
        assert explained.chosen == BACKEND and "batch invariant" in str(explained)
        assert "use_batch_invariant: it does not promise" in str(explained)
        with fk.use_backend("eager"), pytest.raises(fk.NoBackendError, match="eager: use_batch_invariant: it does not"):
            fk.fused_linear(x, weight)
        with fk.use_batch_invariant(False), fk.use_backend("eager"):
            fk.fused_linear(x, weight)
    assert "batch invariant" not in str(fk.fused_linear.explain(x, weight))


def test_remembered_decisions_know_whether_it_is_wanted(native):
    """The same call inside and outside, in turn."""
    rng = np.random.default_rng(3)
    x, weight = random(rng, (33, 1030), "float32"), random(rng, (1030, 64), "float32")
    inside = []
    for _ in range(2):
        fk.fused_linear(x, weight)
        with fk.use_batch_invariant():
            inside.append(fk.fused_linear(x, weight))
            alone = np.concatenate([fk.fused_linear(x[row : row + 1], weight) for row in range(len(x))])
        np.testing.assert_array_equal(bits(inside[-1]), bits(alone))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_program_keeps_the_promise(tmp_path, dtype):
    paddle = pytest.importorskip("paddle")
    from fusionkit import passes
    from fusionkit.frameworks.paddle import from_numpy, to_numpy
    from fusionkit.nn import Linear

    layer = Linear(1030, 64, bias=True)
    layer.to(dtype=dtype)
    with fk.use_batch_invariant():
        passes.export(layer, tmp_path / "layer", [paddle.static.InputSpec([-1, 1030], dtype, "x")])
    assert json.dumps("batch_invariant") in (tmp_path / "layer.json").read_text(encoding="utf-8")
    predictor = passes.create_predictor(tmp_path / "layer")
    x = random(np.random.default_rng(4), (33, 1030), dtype)
    together, *alone = (
        to_numpy(predictor.run([from_numpy(rows, "cpu")])[0])
        for rows in (x, *(x[row : row + 1] for row in range(len(x))))
    )
    np.testing.assert_array_equal(bits(together), bits(np.concatenate(alone)))
