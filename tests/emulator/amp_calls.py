"""Mixed precision on the emulated device: master weights, loss scaling; run on it by test_runtime.py."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

RATE, STEPS = 1e-5, 10


@pytest.fixture(autouse=True)
def on_the_device():
    paddle.set_device("npu:0")


def layer():
    made = paddle.nn.Linear(16, 16, bias_attr=False)
    made.weight.set_value(np.random.default_rng(0).uniform(1, 2, (16, 16)).astype("float32"))
    return made


def loss_of(model, x):
    return model(x).astype("float32").pow(2).mean()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", [paddle.optimizer.AdamW, paddle.optimizer.Adam])
def test_master_weights_collect_what_sixteen_bits_would_lose(dtype, optimizer):
    x = paddle.to_tensor(np.random.default_rng(1).standard_normal((8, 16)).astype("float32"))
    model, options = layer(), {"weight_decay": 0.0} if optimizer is paddle.optimizer.AdamW else {}
    steps = optimizer(RATE, parameters=model.parameters(), multi_precision=True, **options)
    model, steps = paddle.amp.decorate(model, steps, level="O2", dtype=dtype, master_weight=True)
    before = model.weight.astype("float32").numpy()
    for _ in range(STEPS):
        with paddle.amp.auto_cast(level="O2", dtype=dtype):
            loss = loss_of(model, x)
        loss.backward()
        steps.step()
        steps.clear_grad()
    (master,) = steps._master_weights.values()
    assert model.weight.dtype == getattr(paddle, dtype) and master.dtype == paddle.float32
    # A step is the rate while a gradient keeps its sign; between 1 and 2 bfloat16 has steps of 2^-7.
    np.testing.assert_allclose(np.abs(master.numpy() - before), STEPS * RATE, rtol=0.05)
    assert bool((model.weight == master.astype(dtype)).all())


def test_a_step_whose_gradients_overflow_is_left_out():
    model = layer()
    steps = paddle.optimizer.AdamW(RATE, parameters=model.parameters())
    scaler = paddle.amp.GradScaler(init_loss_scaling=2.0**40)
    before = model.weight.numpy()
    with paddle.amp.auto_cast(level="O1", dtype="float16"):
        loss = model(paddle.ones([4, 16])).sum()
    scaler.scale(loss).backward()
    assert not np.isfinite(model.weight.grad.numpy()).all()
    scaler.step(steps)  # update() fails in Paddle 3.3.1 with NumPy 2.4: it makes a number of an array of one element
    assert np.array_equal(model.weight.numpy(), before)
