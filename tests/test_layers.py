"""The Paddle layers of fusionkit.nn, against NumPy."""

from __future__ import annotations

from types import SimpleNamespace

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


def test_rms_norm_returns_one_tensor_and_with_a_residual_stream_two():
    layer, x, residual = RMSNorm(8, epsilon=0.1), random(4, 8), random(4, 8, seed=1)
    weight = set_random(layer.weight, 2)

    def expected(stream):
        return stream / np.sqrt(np.mean(np.square(stream, dtype=np.float64), -1, keepdims=True) + 0.1) * weight

    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected(x), rtol=0, atol=1e-5)
    y, kept = layer(paddle.to_tensor(x), paddle.to_tensor(residual))
    np.testing.assert_allclose(kept.numpy(), x + residual, rtol=0, atol=1e-6)
    np.testing.assert_allclose(y.numpy(), expected(x + residual), rtol=0, atol=1e-5)


CASTS = {
    "bfloat16": lambda model: model.bfloat16(),
    "float16": lambda model: model.float16(),
    "half": lambda model: model.half(),
    "float": lambda model: model.float(),
    "double": lambda model: model.double(),
    "astype": lambda model: model.astype("bfloat16"),
    "to": lambda model: model.to(dtype="float16"),
    "to and back": lambda model: model.to(dtype="bfloat16").to(dtype="float32"),
    "to a device": lambda model: model.to(device="cpu", dtype="bfloat16"),
    "type": lambda model: model.type("float16"),
    "amp": lambda model: paddle.amp.decorate(models=model, level="O2", dtype="bfloat16"),
}


class Turned(paddle.nn.Layer):
    """A projection, so that a cast has something to cast, and the rotation of what it gives."""

    def __init__(self):
        super().__init__()
        self.projection, self.rotary = Linear(6, 6), RotaryEmbedding(head_dim=6, max_position=4096)

    def forward(self, x):
        q = self.projection(x).reshape([1, -1, 1, 6])
        return self.rotary(q, q, paddle.full([1, q.shape[1]], 4095, dtype="int64"))[0]


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS.keys())
def test_the_tables_of_angles_are_constants_whatever_the_model_is_cast_to(cast):
    model = Turned()
    expected = {name: np.array(table.numpy()) for name, table in model.rotary.named_buffers()}
    cast(model)
    tables = dict(model.rotary.named_buffers())
    for name, table in expected.items():
        assert tables[name].dtype == paddle.float32
        np.testing.assert_array_equal(tables[name].numpy(), table)
    dtype = model.projection.weight.dtype
    if dtype != paddle.float64:  # the ops have no float64
        assert model(paddle.to_tensor(random(3, 6)).cast(dtype)).dtype == dtype


def test_tables_of_another_state_dict_are_not_taken():
    model = Turned()
    cos = model.rotary.cos.numpy()
    state = {**model.state_dict(), "rotary.cos": model.rotary.cos.cast("bfloat16")}
    model.set_state_dict(state)
    assert model.rotary.cos.dtype == paddle.float32
    np.testing.assert_array_equal(model.rotary.cos.numpy(), cos)


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


def test_a_head_whose_vocabulary_is_smaller_than_its_group_is_refused():
    two = SimpleNamespace(rank=1, world_size=2)
    assert LanguageModelHead(8, 3, group=two).weight.shape == [8, 1]
    with pytest.raises(ValueError, match="LanguageModelHead: vocab_size must be at least the group's 2 ranks, got 1"):
        LanguageModelHead(8, 1, group=two)


def test_parameters_and_their_gradients_are_float32_beside_bfloat16_activations():
    norm, linear, head = RMSNorm(8), Linear(8, 8, bias=True), LanguageModelHead(8, 11)
    x = linear(norm(paddle.to_tensor(random(4, 8)).cast("bfloat16")))
    assert x.dtype == paddle.bfloat16
    loss_sum, _ = head.loss(x, paddle.arange(4))
    loss_sum.backward()
    for parameter in (*norm.parameters(), *linear.parameters(), *head.parameters()):
        assert parameter.dtype == paddle.float32 and parameter.grad.dtype == paddle.float32
        assert np.abs(parameter.grad.numpy()).max() > 0
    assert {backend for _, backend, _ in fk.ledger()} == {"cpu"}
