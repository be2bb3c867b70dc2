"""What gcu's custom ops promise, asked of the emulated device. Run by test_contracts.py in a process that has one."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fusionkit.frameworks import custom_device
from tests.emulator.device_tensors import assert_refused, float64, is_nan, on_device
from tests.emulator.device_tensors import tensor as any_tensor

assert custom_device.missing("gcu") is None
ATTENTION = "fused_sdp_flash_attention_gcu"


def tensor(*shape, **options):
    return any_tensor("gcu", *shape, **options)


def attend(q, k, v, mask=None, *, dropout=0.0, causal=False, is_test=True):
    return custom_device.run(ATTENTION, (q, k, v, mask), dropout, causal, is_test)[0]


def test_only_gcus_ops_are_registered():
    counts = custom_device.argument_counts
    assert counts("rms_norm_gcu") == (2, 1) and counts("fused_add_rms_norm_op") == (3, 1)
    assert counts("fused_rotary_embedding_gcu") == (4, 1) and counts(ATTENTION) == (4, 3)
    assert counts("rms_norm_npu") is None and counts("flash_attention_npu") is None


def test_no_op_has_a_gradient():
    x, weight = tensor(2, 8, gradient=True), tensor(8)
    assert custom_device.run("rms_norm_gcu", (x, weight), 1e-5)[0].stop_gradient
    q = tensor(1, 3, 1, 8, gradient=True)
    assert attend(q, q, q).stop_gradient


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_add_rms_norm_writes_its_results_into_its_inputs(dtype):
    x, residual, weight = tensor(2, 8, dtype=dtype), tensor(2, 8, dtype=dtype), tensor(8, dtype=dtype)
    total = float64(x) + float64(residual)
    y, residual_out = custom_device.run("fused_add_rms_norm_op", (x, residual, weight), 1e-5)
    assert y.data_ptr() == x.data_ptr() and residual_out.data_ptr() == residual.data_ptr()
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(float64(residual), total, rtol=epsilon)
    # From the rounded sum: the norm of the exact one is another number in 16 bits.
    want = float64(residual) / np.sqrt((float64(residual) ** 2).mean(-1, keepdims=True) + 1e-5) * float64(weight)
    np.testing.assert_allclose(float64(x), want, rtol=epsilon)


@pytest.mark.parametrize("positions", ["int32", "int64"])
@pytest.mark.parametrize("is_neox", [True, False])
def test_rotation_of_halves_is_neox(is_neox, positions):
    q, k, table = (
        tensor(2, 3, 4, 8, dtype="float32"),
        tensor(2, 3, 2, 8, dtype="float32"),
        tensor(5, 8, dtype="float32"),
    )
    at = np.array([[0, 4, 2], [1, 1, 3]], positions)
    outputs = custom_device.run("fused_rotary_embedding_gcu", (q, k, table, on_device("gcu", at)), is_neox)
    cos, sin = (half[:, :, None] for half in np.split(float64(table)[at], 2, axis=-1))
    for x, out in zip((q, k), outputs, strict=True):
        first, second = (slice(0, 4), slice(4, 8)) if is_neox else (slice(0, 8, 2), slice(1, 8, 2))
        a, b, got = float64(x)[..., first], float64(x)[..., second], float64(out)
        np.testing.assert_allclose(got[..., first], a * cos - b * sin, atol=1e-6)
        np.testing.assert_allclose(got[..., second], b * cos + a * sin, atol=1e-6)


def test_the_mask_is_added():
    q, k, mask = tensor(2, 3, 2, 8), tensor(2, 4, 2, 8), tensor(2, 1, 3, 4)
    s = np.einsum("bqhd,bkhd->bhqk", float64(q), float64(k)) / np.sqrt(8) + float64(mask)
    p = np.exp(s - s.max(-1, keepdims=True))
    want = np.einsum("bhqk,bkhd->bqhd", p / p.sum(-1, keepdims=True), float64(k))
    np.testing.assert_allclose(float64(attend(q, k, k, mask)), want, atol=2e-3)


def test_what_the_contract_does_not_say_is_nan():
    q, other, fewer = tensor(2, 3, 2, 8), tensor(2, 4, 2, 8), tensor(2, 3, 1, 8)
    assert is_nan(attend(q, fewer, fewer))  # grouped heads
    assert is_nan(attend(q, other, other, causal=True))  # causal with two lengths
    assert is_nan(attend(q, q, q, tensor(2, 1, 3, 3), causal=True))  # causal beside a mask
    assert is_nan(attend(q, q, q, dropout=0.5, is_test=False))
    assert not is_nan(attend(q, q, q, causal=True)) and not is_nan(attend(q, q, q, dropout=0.5))
    empty = on_device("gcu", np.full((2, 1, 3, 3), -np.inf, np.float16))
    assert is_nan(attend(q, q, q, empty))


def test_attention_refuses_what_the_vendor_refuses():
    q, wide = tensor(2, 3, 2, 8), tensor(2, 3, 2, 8, dtype="float32")
    refusals = [
        ((wide, wide, wide, None), "query must be float16, got float32"),
        ((q, q, q, tensor(2, 1, 3, 3, dtype="float32")), "attn_mask must be float16, the dtype of query, got float32"),
        ((q, q, q, tensor(1, 1, 3, 3)), "attn_mask must be [batch_size, 1, q_len, kv_len] = [2, 1, 3, 3], got [1, 1,"),
        ((q, q, q, tensor(2, 2, 3, 3)), "attn_mask must be [batch_size, 1, q_len, kv_len] = [2, 1, 3, 3], got [2, 2,"),
    ]
    for inputs, message in refusals:
        assert_refused(ATTENTION, inputs, (0.0, False, True), message)


def test_norms_and_rope_refuse_what_the_vendor_refuses():
    x, wide = tensor(2, 8), tensor(2, 8, dtype="float32")
    weight = tensor(8)
    assert_refused("rms_norm_gcu", (wide, weight), (1e-5,), "weight must be float32, the dtype of x, got float16")
    assert_refused("rms_norm_gcu", (x, tensor(4)), (1e-5,), "weight must be [hidden_size] = [8], got [4]")
    assert_refused(
        "fused_add_rms_norm_op", (x, wide, weight), (1e-5,), "residual must be float16, the dtype of x, got float32"
    )
    q, table, at = tensor(1, 2, 1, 8), tensor(4, 8, dtype="float32"), on_device("gcu", np.zeros((1, 2), np.int64))
    rope = "fused_rotary_embedding_gcu"
    assert_refused(rope, (q, q, tensor(4, 8), at), (True,), "cos_sin_table must be float32, got float16")
    assert_refused(rope, (q, q, tensor(4, 4, dtype="float32"), at), (True,), "cos_sin_table must be [max_position, he")
    assert_refused(rope, (q, q, table, tensor(1, 2)), (True,), "positions must be int32 or int64, got float16")
    assert_refused(rope, (q, q, table, at[:, :1]), (True,), "positions must be [batch_size, seq_len] = [1, 2], got [1,")
