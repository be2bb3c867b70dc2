"""What npu's ops for inference promise, asked of the emulated device: test_contracts.py runs it where there is one."""

from __future__ import annotations

import numpy as np
import pytest

from fusionkit.frameworks import custom_device
from tests.emulator.device_tensors import assert_refused, float64, is_nan
from tests.emulator.device_tensors import on_device as any_on_device

assert custom_device.missing("npu") is None

HEADS, KV_HEADS, HEAD_DIM, INNER, BLOCK, MAX_LEN, EPSILON = 4, 2, 8, 48, 4, 16, 1e-5
HIDDEN, WIDTH = HEADS * HEAD_DIM, (HEADS + 2 * KV_HEADS) * HEAD_DIM
# A row in prefill, one that rests, two in decode after 6 and 3 cached tokens.
ENCODER, DECODER, NOW = [5, 0, 0, 0], [0, 0, 6, 3], [5, 0, 1, 1]
TABLES = np.array([[3, 1, -1, -1], [-1, -1, -1, -1], [0, 5, -1, -1], [7, -1, -1, -1]])
SHAPES = {"qkv": (HIDDEN, WIDTH), "out": (HIDDEN, HIDDEN), "ffn1": (HIDDEN, 2 * INNER), "ffn2": (INNER, HIDDEN)}


def on_device(array):
    return any_on_device("npu", array)


def values(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype("float16")


def weights(number):
    made = {name: values([number, i], *shape, scale=0.2) for i, (name, shape) in enumerate(SHAPES.items())}
    norms = {name: 1 + values([number, 9 + i], HIDDEN, scale=0.1) for i, name in enumerate(("norm", "ffn_norm"))}
    return made | norms | {"bias": values([number, 20], WIDTH, scale=0.3)}


def angles(halves):
    """[2, 1, MAX_LEN, 1, HEAD_DIM] float32: cos and sin for each element."""
    frequencies = 10000.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    table = np.outer(np.arange(MAX_LEN), frequencies)
    table = np.concatenate([table, table], -1) if halves else np.repeat(table, 2, -1)
    return np.stack([np.cos(table), np.sin(table)])[:, None, :, None].astype("float32")


def call(hidden, w, rope, caches, flag, *, transposed=(), halves=True, alibi=False, deq=None):
    matrix = {name: on_device(w[name].T.copy() if name in transposed else w[name]) for name in SHAPES}
    inputs = (
        on_device(hidden), on_device(w["norm"]), matrix["qkv"], on_device(w["bias"]), deq, matrix["out"], None, None,
        None, on_device(w["ffn_norm"]), matrix["ffn1"], None, matrix["ffn2"], None, None, None, on_device(rope),
        *caches, *(on_device(np.array(lengths, "int32")) for lengths in (ENCODER, DECODER, NOW)),
        on_device(TABLES.astype("int32")),
    )  # fmt: skip
    flags = tuple(name in transposed for name in SHAPES)
    attributes = (flag, MAX_LEN, BLOCK, EPSILON, 1.0, 1.0, 1.0, 1.0, *flags, halves, alibi)
    return custom_device.run("fused_blha_layer_op", inputs, *attributes)[0]


def rotated(x, rope, position, halves):
    cos, sin = rope[:, 0, position, 0].astype("float16").astype("float64")
    a, b = (x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2 :]) if halves else (x[..., ::2], x[..., 1::2])
    turned = np.concatenate([-b, a], -1) if halves else np.stack([-b, a], -1).reshape(x.shape)
    return x * cos + turned * sin


def norm(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * weight


def expected_layer(x, w, rope, key_cache, value_cache, halves):
    """One layer in float64; the caches [blocks, KV_HEADS, BLOCK, HEAD_DIM] are updated."""
    w = {name: array.astype("float64") for name, array in w.items()}
    out, token = [], 0
    for row, count in enumerate(NOW):
        first = 0 if ENCODER[row] else DECODER[row]
        for position in range(first, first + count):
            heads = (norm(x[token], w["norm"]) @ w["qkv"] + w["bias"]).reshape(-1, HEAD_DIM)
            q, k, v = np.split(heads, [HEADS, HEADS + KV_HEADS])
            place = TABLES[row, position // BLOCK], slice(None), position % BLOCK
            key_cache[place], value_cache[place] = rotated(k, rope, position, halves), v
            seen = [(TABLES[row, i // BLOCK], slice(None), i % BLOCK) for i in range(position + 1)]
            keys, cached = (np.repeat(np.stack([c[s] for s in seen]), 2, 1) for c in (key_cache, value_cache))
            scores = np.einsum("hd,shd->hs", rotated(q, rope, position, halves), keys) / np.sqrt(HEAD_DIM)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            attended = np.einsum("hs,shd->hd", p / p.sum(-1, keepdims=True), cached)
            y = x[token] + attended.reshape(-1) @ w["out"]
            gate, up = np.split(norm(y, w["ffn_norm"]) @ w["ffn1"], 2)
            out.append(y + (gate / (1 + np.exp(-gate)) * up) @ w["ffn2"])
            token += 1
    return np.array(out)


@pytest.mark.parametrize("halves, transposed", [(True, ()), (False, tuple(SHAPES)), (True, ("qkv", "ffn2"))])
def test_two_layers_serve_prefill_and_decode_in_one_step(halves, transposed):
    hidden, rope = values(0, sum(NOW), HIDDEN), angles(halves)
    x = hidden.astype("float64")
    for number, flag in ((1, 1), (2, 2)):
        w = weights(number)
        before = [values([number, 30 + i], 8, KV_HEADS, BLOCK, HEAD_DIM) for i in range(2)]
        caches = [on_device(each) for each in before]
        # Only the first layer of a step reads `hidden`, only the last gives something.
        given = hidden if flag == 1 else np.full_like(hidden, np.nan)
        out = call(given, w, rope, caches, flag, halves=halves, transposed=transposed)
        wanted = [each.astype("float64") for each in before]
        x = expected_layer(x, w, rope, *wanted, halves)
        for cache, want in zip(caches, wanted, strict=True):
            np.testing.assert_allclose(float64(cache), want, atol=1e-2)
        if flag == 1:
            assert out.shape == [1, HIDDEN] and is_nan(out)
    got = float64(out)
    assert got.shape == (4, HIDDEN) and np.isnan(got[1]).all()
    # Some ten roundings to float16 (2^-11) of values up to 12.
    np.testing.assert_allclose(got[[0, 2, 3]], x[[4, 5, 6]], atol=5e-2)


def test_what_the_layer_does_not_take_is_refused():
    hidden, w, rope = values(0, sum(NOW), HIDDEN), weights(1), angles(True)
    caches = [on_device(values(i, 8, KV_HEADS, BLOCK, HEAD_DIM)) for i in range(2)]
    for message, options in (
        ("use_alibi must be False", {"alibi": True}),
        ("qkv_deq_scale must be None", {"deq": on_device(np.ones(WIDTH, "float32"))}),
    ):
        with pytest.raises(ValueError, match=message):
            call(hidden, w, rope, caches, 1, **options)
    with pytest.raises(ValueError, match="hidden must be float16, got float32"):
        call(hidden.astype("float32"), w, rope, caches, 1)
    with pytest.raises(ValueError, match="qkv_weight must be"):
        call(hidden, w | {"qkv": w["qkv"][:, :-1]}, rope, caches, 1)


def test_padding_is_removed_and_last_tokens_are_found_again():
    ids = np.arange(12).reshape(3, 4)
    (tokens,) = custom_device.run("remove_padding", (on_device(ids), on_device(np.array([2, 0, 4], "int32"))))
    assert tokens.numpy().tolist() == [0, 1, 8, 9, 10, 11]
    assert_refused("remove_padding", (on_device(ids), on_device(np.array([2, 0, 5], "int32"))), (), "seqlen must be")
    states = values(0, 6, 3)
    lengths = [on_device(np.array(each, "int32")) for each in ([0, 2, 6], [0, 0, 0], [2, 0, 4])]
    got = float64(custom_device.run("rebuild_padding_v2", (on_device(states), *lengths), 4)[0])
    np.testing.assert_array_equal(got[[0, 2]], states[[1, 5]].astype("float64"))
    assert np.isnan(got[1]).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_lm_head_normalises_and_multiplies(transposed):
    x, gamma, weight = values(0, 3, HIDDEN), values(1, HIDDEN), values(2, HIDDEN, 40, scale=0.2)
    given = on_device(weight.T.copy() if transposed else weight)
    inputs = (on_device(x), on_device(gamma), given)
    (out,) = custom_device.run("lm_head", inputs, EPSILON, transposed, 0, 1, 0, 0)
    want = norm(x.astype("float64"), gamma.astype("float64")) @ weight.astype("float64")
    np.testing.assert_allclose(float64(out), want, atol=1e-2)
    assert_refused("lm_head", inputs, (EPSILON, transposed, 0, 2, 0, 0), "nranks must be 1")
