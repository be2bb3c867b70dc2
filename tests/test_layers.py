"""The Paddle layers of fusionkit.nn, against NumPy."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import fusionkit as fk
from fusionkit.nn import LanguageModelHead, Linear, RMSNorm, RotaryEmbedding


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def set_random(parameter, seed):
    parameter.set_value(random(*parameter.shape, seed=seed))
    return parameter.numpy().astype(np.float64)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_a_product_with_an_optional_bias(bias):
    layer, x = Linear(5, 7, bias=bias), random(2, 3, 5)
    expected = x @ set_random(layer.weight, 1) + (set_random(layer.bias, 2) if bias else 0)
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, rtol=0, atol=1e-5)
    assert len(layer.parameters()) == 1 + bias


def test_rms_norm_returns_the_residual_stream():
    layer, x, residual = RMSNorm(8, epsilon=0.1), random(4, 8), random(4, 8, seed=1)
    weight = set_random(layer.weight, 2)
    for given, stream in (((x,), x), ((x, residual), x + residual)):
        y, kept = layer(*map(paddle.to_tensor, given))
        np.testing.assert_allclose(kept.numpy(), stream, rtol=0, atol=1e-6)
        expected = stream / np.sqrt(np.mean(np.square(stream, dtype=np.float64), -1, keepdims=True) + 0.1) * weight
        np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_embedding_rotates_pairs_by_position_times_frequency(interleaved):
    layer = RotaryEmbedding(head_dim=6, max_position=12, theta=100.0, interleaved=interleaved)
    q, k, positions = random(1, 2, 3, 6), random(1, 2, 1, 6, seed=1), np.array([[11, 4]])
    outputs = layer(*map(paddle.to_tensor, (q, k, positions)))
    pairs = [(0, 1), (2, 3), (4, 5)] if interleaved else [(0, 3), (1, 4), (2, 5)]
    for x, y in zip((q, k), outputs, strict=True):
        for number, (real, imaginary) in enumerate(pairs):
            turn = np.exp(1j * positions[..., None] * 100.0 ** (-2 * number / 6))
            expected = (x[..., real] + 1j * x[..., imaginary]) * turn
            got = y.numpy()[..., real] + 1j * y.numpy()[..., imaginary]
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert layer.state_dict() == {}


def test_the_head_gives_float32_logits_and_the_loss_of_its_targets():
    layer, x = LanguageModelHead(8, 11), random(2, 3, 8)
    weight = set_random(layer.weight, 1)
    logits = x @ weight
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), logits, rtol=0, atol=1e-5)
    low = layer(paddle.to_tensor(x).cast("bfloat16"))
    assert low.dtype == paddle.float32
    np.testing.assert_allclose(low.numpy(), logits, rtol=0, atol=0.1)
    labels = np.array([[1, -100, 3], [4, 5, -100]])
    loss_sum, num_tokens = layer.loss(paddle.to_tensor(x), paddle.to_tensor(labels))
    scores = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    expected = -sum(scores[row, column, label] for (row, column), label in np.ndenumerate(labels) if label != -100)
    assert float(loss_sum) == pytest.approx(expected, rel=1e-5) and int(num_tokens) == 4


def test_parameters_and_their_gradients_are_float32_beside_bfloat16_activations():
    norm, linear, head = RMSNorm(8), Linear(8, 8, bias=True), LanguageModelHead(8, 11)
    x, _ = norm(paddle.to_tensor(random(4, 8)).cast("bfloat16"))
    x = linear(x)
    assert x.dtype == paddle.bfloat16
    loss_sum, _ = head.loss(x, paddle.arange(4))
    loss_sum.backward()
    for parameter in (*norm.parameters(), *linear.parameters(), *head.parameters()):
        assert parameter.dtype == paddle.float32 and parameter.grad.dtype == paddle.float32
        assert np.abs(parameter.grad.numpy()).max() > 0
    assert {backend for _, backend, _ in fk.ledger()} == {"cpu"}
