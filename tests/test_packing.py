"""A weight that trains is packed anew in each call: its values change while its address and version stay."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fusionkit as fk

paddle = pytest.importorskip("paddle")

ROWS, IN_FEATURES, HIDDEN, OUT_FEATURES = 256, 160, 192, 96  # rows enough for a weight to be packed
BOUND = {"float32": 1e-5, "bfloat16": 2e-2}


def parameters():
    """Two weights in float32; a learning rate at which each step changes every product by far more than BOUND."""
    paddle.seed(0)
    shapes = [IN_FEATURES, HIDDEN], [HIDDEN, OUT_FEATURES]
    weights = [paddle.create_parameter(shape, "float32") for shape in shapes]
    return weights, paddle.optimizer.AdamW(learning_rate=0.1, parameters=weights)


def activations(dtype):
    numbers = np.random.default_rng(0)
    x = numbers.standard_normal((ROWS, IN_FEATURES)).astype(np.float32)
    target = numbers.standard_normal((ROWS, OUT_FEATURES)).astype(np.float32)
    return paddle.to_tensor(x).cast(dtype), paddle.to_tensor(target).cast(dtype)


def float64(tensor):
    return tensor.cast("float32").numpy().astype(np.float64)


def rounded(array, dtype):
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32).astype(np.float64)


def expected(x, weights, target, dtype):
    """The output and both weights' gradients of sum(x W V * target), from the values that the weights hold now."""
    w, v = (rounded(float64(weight), dtype) for weight in weights)
    hidden = rounded(x @ w, dtype)
    dhidden = rounded(target @ v.T, dtype)
    return hidden @ v, x.T @ dhidden, hidden.T @ target


def assert_close(got, want, dtype):
    error = np.abs(got - want).max() / np.sqrt(np.mean(want**2))
    assert error < BOUND[dtype] * 6, error  # the largest of 18,000 to 31,000 elements, in units of their RMS


def step_and_check(x, weights, target, dtype):
    want = expected(float64(x), weights, float64(target), dtype)
    y = fk.fused_linear(fk.fused_linear(x, weights[0]), weights[1])
    y.backward(target)
    for got, reference in zip((y, weights[0].grad, weights[1].grad), want, strict=True):
        assert_close(float64(got), reference, dtype)
    return want[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_step_of_adamw_multiplies_the_weights_of_that_step(dtype):
    (weights, optimizer), (x, target) = parameters(), activations(dtype)
    places = [weight.data_ptr() for weight in weights]
    versions = [weight.inplace_version for weight in weights]
    outputs = []
    with fk.use_backend("cpu"):
        for _ in range(4):
            outputs.append(step_and_check(x, weights, target, dtype))
            optimizer.step()
            optimizer.clear_grad()
    assert [weight.data_ptr() for weight in weights] == places
    assert [weight.inplace_version for weight in weights] == versions, "a version would tell: choose another update"
    for before, after in zip(outputs, outputs[1:], strict=False):
        assert np.abs(after - before).max() > 100 * BOUND[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_set_between_calls(dtype):
    (weights, _), (x, target) = parameters(), activations(dtype)
    with fk.use_backend("cpu"):
        for scale in (1.0, -3.0):
            for weight in weights:
                weight.set_value(scale * weight.numpy())
                weight.clear_grad()
            step_and_check(x, weights, target, dtype)


def test_the_loss_multiplies_the_weights_of_its_step():
    (weights, optimizer), (x, _) = parameters(), activations("float32")
    labels = np.arange(ROWS) % HIDDEN
    losses = []
    with fk.use_backend("cpu"):
        for _ in range(3):
            logits = float64(x) @ float64(weights[0])
            want = (np.log(np.exp(logits).sum(-1)) - logits[np.arange(ROWS), labels]).sum()
            loss, _ = fk.fused_linear_cross_entropy(x, weights[0], paddle.to_tensor(labels))
            assert float(loss) == pytest.approx(want, rel=1e-5)
            losses.append(want)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
    assert losses[0] > 1.01 * losses[1] > 1.01**2 * losses[2]
