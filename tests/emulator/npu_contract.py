"""What npu's custom ops promise, asked of the emulated device. Run by test_contracts.py in a process that has one."""

from __future__ import annotations

import os
import time

import numpy as np
import paddle
import pytest

from fusionkit.frameworks import custom_device
from tests.emulator.device_tensors import assert_refused, float64, is_nan, on_device
from tests.emulator.device_tensors import tensor as any_tensor

NEWER = os.environ.get("FUSIONKIT_EMULATOR_FLASH_ATTENTION_ARGUMENTS", "13") == "13"
assert custom_device.missing("npu") is None


def tensor(*shape, **options):
    return any_tensor("npu", *shape, **options)


def attend(q, k, v, mask=None, *, dropout=0.0, causal=False, triangle=False, unnamed=(None, None, False)):
    inputs, attributes = (q, k, v, None, mask), (dropout, causal, True, False, triangle)
    if NEWER:
        inputs, attributes = (*inputs, *unnamed[:2]), (*attributes, unnamed[2])
    return custom_device.run("flash_attention_npu", inputs, *attributes)


def scores(q, k):
    """[batch_size, num_heads, q_len, kv_len] float64, keys repeated for grouped heads."""
    keys = np.repeat(float64(k), q.shape[2] // k.shape[2], axis=2)
    return np.einsum("bqhd,bkhd->bhqk", float64(q), keys) / np.sqrt(q.shape[3])


def expected(q, k, v, dropped=None):
    s = scores(q, k)
    p = np.exp(s - s.max(-1, keepdims=True)) * (1 if dropped is None else ~dropped)
    values = np.repeat(float64(v), q.shape[2] // v.shape[2], axis=2)
    return np.einsum("bhqk,bkhd->bqhd", p / p.sum(-1, keepdims=True), values)


def test_only_npus_ops_are_registered_in_the_form_that_was_asked_for():
    counts = custom_device.argument_counts
    assert counts("rms_norm_npu") == (2, 1) and counts("fused_rope") == (3, 0) and counts("rms_norm_gcu") is None
    assert counts("flash_attention_npu") == ((7, 6) if NEWER else (5, 5))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rms_norm_gives_statistics_in_float32_and_a_float32_gradient_of_gamma(dtype):
    x, gamma = tensor(2, 3, 8, dtype=dtype, gradient=True), tensor(8, dtype=dtype, gradient=True)
    y, rstd = custom_device.run("rms_norm_npu", (x, gamma), 1e-5)
    assert (y.dtype, y.shape) == (gamma.dtype, [2, 3, 8]) and (rstd.dtype, rstd.shape) == (paddle.float32, [2, 3, 1])
    want = 1 / np.sqrt((float64(x) ** 2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(float64(rstd), want, rtol=1e-6)
    dx, dgamma = paddle.grad(y, [x, gamma], tensor(2, 3, 8, dtype=dtype))
    assert dx.dtype == x.dtype and dgamma.dtype == paddle.float32


def test_rms_norm_takes_a_gamma_of_several_axes():
    y, rstd = custom_device.run("rms_norm_npu", (tensor(2, 3, 4), tensor(3, 4)), 1e-5)
    assert y.shape == [2, 3, 4] and rstd.shape == [2, 1, 1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_has_seven_outputs_and_repeats_each_statistic_eight_times(dtype):
    q, k = tensor(2, 5, 4, 16, dtype=dtype), tensor(2, 7, 2, 16, dtype=dtype)
    out, maximum, total, reserved, *integers = attend(q, k, k)
    assert (out.dtype, out.shape) == (q.dtype, q.shape)
    assert [(o.dtype, o.shape) for o in (maximum, total)] == [(paddle.float32, [2, 4, 5, 8])] * 2
    assert reserved.dtype == q.dtype and is_nan(reserved)
    assert [(o.dtype, o.shape) for o in integers] == [(paddle.int64, [1])] * 3
    s = scores(q, k)
    np.testing.assert_allclose(float64(maximum), np.repeat(s.max(-1)[..., None], 8, -1), rtol=1e-5)
    sums = np.exp(s - s.max(-1, keepdims=True)).sum(-1)
    np.testing.assert_allclose(float64(total), np.repeat(sums[..., None], 8, -1), rtol=1e-5)
    np.testing.assert_allclose(float64(out), expected(q, k, k), atol=2e-2)


def test_a_call_returns_before_its_result_is_there():
    q = tensor(1, 1024, 8, 64)  # some 0.2 s
    began = time.perf_counter()
    out = attend(q, q, q)[0]
    returned = time.perf_counter()
    out.numpy()
    assert returned - began < (time.perf_counter() - began) / 2


def test_true_in_the_mask_drops():
    q, k = tensor(2, 5, 2, 16), tensor(2, 5, 2, 16)
    dropped = np.random.default_rng(0).random((2, 1, 5, 5)) < 0.5
    dropped[..., 0] = False
    out = attend(q, k, k, on_device("npu", dropped))[0]
    np.testing.assert_allclose(float64(out), expected(q, k, k, dropped), atol=2e-3)


def test_a_row_without_any_key_is_nan_forward_and_backward():
    q, k = tensor(1, 3, 1, 8, gradient=True), tensor(1, 3, 1, 8)
    dropped = np.zeros((1, 1, 3, 3), bool)
    dropped[..., 1, :] = True
    out = attend(q, k, k, on_device("npu", dropped))[0]
    assert np.isnan(float64(out)).any(-1)[0, :, 0].tolist() == [False, True, False]
    (dq,) = paddle.grad(out, [q], tensor(1, 3, 1, 8))
    assert np.isnan(float64(dq)).any(-1)[0, :, 0].tolist() == [False, True, False]


def test_the_triangle_is_a_promise_and_a_row_that_breaks_it_is_nan():
    q, k = tensor(1, 3, 1, 8), tensor(1, 3, 1, 8)
    dropped = np.triu(np.ones((3, 3), bool), 1)[None, None]
    kept = attend(q, k, k, on_device("npu", dropped), triangle=True)[0]
    np.testing.assert_allclose(float64(kept), expected(q, k, k, dropped), atol=2e-3)
    broken = dropped.copy()
    broken[..., 0, 2] = False
    out = attend(q, k, k, on_device("npu", broken), triangle=True)[0]
    assert np.isnan(float64(out)).any(-1)[0, :, 0].tolist() == [True, False, False]


def test_causal_beside_a_mask_is_not_said_and_nan():
    q, mask = tensor(1, 3, 1, 8), on_device("npu", np.zeros((1, 1, 3, 3), bool))
    assert is_nan(attend(q, q, q, mask, causal=True)[0])


def test_dropout_is_ignored_forward_and_not_specified_backward():
    q, k = tensor(1, 3, 1, 8, gradient=True), tensor(1, 3, 1, 8)
    plain, dropping = attend(q, k, k)[0], attend(q, k, k, dropout=0.5)[0]
    assert np.array_equal(float64(plain), float64(dropping))
    assert is_nan(paddle.grad(dropping, [q], tensor(1, 3, 1, 8))[0])


@pytest.mark.skipif(not NEWER, reason="the form with 10 arguments has no unnamed one")
@pytest.mark.parametrize("position", range(3))
def test_arguments_that_the_contract_does_not_name_give_nan(position):
    q, unnamed = tensor(1, 3, 1, 8), [None, None, False]
    unnamed[position] = True if position == 2 else tensor(4)
    assert is_nan(attend(q, q, q, unnamed=unnamed)[0])


def attention_refusals():
    q, k, wide = tensor(2, 5, 4, 16), tensor(2, 7, 2, 16), tensor(2, 5, 4, 16, dtype="float32")
    mask = on_device("npu", np.zeros((2, 1, 5, 7), bool))
    shape = "attn_mask must be [batch_size or 1, 1, q_len, kv_len] = "
    return [
        ((wide, wide, wide), {}, "query must be float16 or bfloat16, got float32"),
        ((q, tensor(2, 7, 2, 16, dtype="bfloat16"), k), {}, "key must be float16, the dtype of query, got bfloat16"),
        ((q, tensor(2, 7, 3, 16), tensor(2, 7, 3, 16)), {}, "num_heads must be a multiple of num_key_value_heads = 3"),
        ((q, tensor(2, 7, 2, 8), tensor(2, 7, 2, 8)), {}, "key must be [batch_size, kv_len, num_key_value_heads"),
        ((q, k, k), {"causal": True}, "kv_len must be q_len = 5 under causal, whose mask is square, got 7"),
        ((q, k, k, tensor(2, 1, 5, 7)), {}, "attn_mask must be bool, got float16"),
        ((q, k, k, mask.expand([2, 4, 5, 7])), {}, f"{shape}[2, 1, 5, 7], got [2, 4, 5, 7]"),
        ((q, k, k, mask[:, :, :, :6]), {}, f"{shape}[2, 1, 5, 7], got [2, 1, 5, 6]"),
        ((q, k, q), {}, "value must be as key = [2, 7, 2, 16], got [2, 5, 4, 16]"),
    ]


@pytest.mark.parametrize("number", range(len(attention_refusals())))
def test_attention_refuses_what_the_vendor_refuses(number):
    inputs, options, message = attention_refusals()[number]
    with pytest.raises(ValueError) as refusal:
        attend(*inputs, **options)
    assert f"flash_attention_npu: {message}" in str(refusal.value)


@pytest.mark.parametrize(
    "x, gamma, message",
    [
        ((2, 8), ((8,), "float64"), "gamma must be float32 or float16 or bfloat16, got float64"),
        ((2, 8), ((4,), "float16"), "gamma must be of the last axes of x [2, 8], got [4]"),
    ],
)
def test_rms_norm_refuses_what_the_vendor_refuses(x, gamma, message):
    assert_refused("rms_norm_npu", (tensor(*x), tensor(*gamma[0], dtype=gamma[1])), (1e-5,), message)


@pytest.mark.parametrize(
    "query, table, dtype, message",
    [
        ((2, 3, 2, 96), (1, 3, 1, 96), "float16", "head_dim must be a multiple of 64, got 96"),
        ((2, 3, 2, 64), (2, 3, 1, 64), "float16", "cos must be [1, seq_len, 1, head_dim] = [1, 3, 1, 64], got [2, 3,"),
        ((2, 3, 2, 64), (1, 3, 1, 64), "float32", "cos must be float16, the dtype of query, got float32"),
        ((3, 2, 64), (1, 3, 1, 64), "float16", "query must be [batch_size, seq_len, num_heads, head_dim], got [3, 2,"),
    ],
)
def test_rope_refuses_what_the_vendor_refuses(query, table, dtype, message):
    angles = tensor(*table, dtype=dtype)
    assert_refused("fused_rope", (tensor(*query), angles, angles), (), message)


def test_rms_norm_gives_gamma_s_dtype():
    x, gamma = tensor(3, 8, dtype="float32", gradient=True), tensor(8, dtype="bfloat16", gradient=True)
    y, _ = custom_device.run("rms_norm_npu", (x, gamma), 1e-5)
    dx, dgamma = paddle.grad(y, [x, gamma], tensor(3, 8, dtype="bfloat16"))
    assert (y.dtype, dx.dtype, dgamma.dtype) == (paddle.bfloat16, paddle.float32, paddle.float32)
