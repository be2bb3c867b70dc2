"""fusionkit.optimizer.AdamW beside Paddle's own: the same values, the same state under the same names."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import fusionkit as fk
from fusionkit.eager import fused_adamw as eager_fused_adamw
from fusionkit.optimizer import AdamW, global_norm

SHAPES = {"matrix": [37, 65], "norm": [65], "frozen": [3]}


def parameters():
    rng = np.random.default_rng(0)
    made = []
    for name, shape in SHAPES.items():
        value = paddle.nn.initializer.Assign(rng.standard_normal(shape).astype(np.float32))
        made.append(paddle.create_parameter(shape, "float32", name=f"{name}.w", default_initializer=value))
    made[-1].stop_gradient = True
    return made


def train(optimizer, tensors, steps=5, **step):
    with paddle.utils.unique_name.guard():  # names of the state end in 0 for both
        for number in range(steps):
            loss_of(tensors, number).backward()
            optimizer.step(**step)
            optimizer.clear_grad()


def loss_of(tensors, number):
    rng = np.random.default_rng(number)
    return sum((tensor * paddle.to_tensor(rng.standard_normal(tensor.shape).astype("f"))).sum() for tensor in tensors)


def optimizers(**settings):
    made = []
    for kind in (AdamW, paddle.optimizer.AdamW):
        with paddle.utils.unique_name.guard():
            tensors = parameters()
            made.append((kind(parameters=tensors, **settings), tensors))
    return made


SETTINGS = {
    "defaults": {},
    "Llama": {"learning_rate": 3e-3, "beta2": 0.95, "epsilon": 1e-5, "weight_decay": 0.1},
    "decay of some": {"apply_decay_param_fun": lambda name: name.startswith("matrix"), "weight_decay": 0.5},
    "clipped by Paddle": {"grad_clip": paddle.nn.ClipGradByGlobalNorm(0.1)},
    "amsgrad": {"amsgrad": True},
    "scheduled": {"learning_rate": paddle.optimizer.lr.StepDecay(0.01, 2)},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_parameters_and_state_are_those_of_paddles_own(settings):
    (ours, tensors), (paddles, others) = optimizers(**settings)
    train(ours, tensors)
    train(paddles, others)
    state, wanted = ours.state_dict(), paddles.state_dict()
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, paddle.Tensor):
            np.testing.assert_allclose(state[name].numpy(), value.numpy(), rtol=1e-4, atol=1e-7, err_msg=name)
    for tensor, other in zip(tensors, others, strict=True):
        np.testing.assert_allclose(tensor.numpy(), other.numpy(), rtol=2e-6, atol=2e-6)


def test_the_fused_op_does_the_updates():
    (ours, tensors), _ = optimizers()
    before = updates()
    train(ours, tensors, steps=3)
    assert updates() == before + 6  # of the two parameters that learn


def updates():
    return sum(count for (op, *_), count in fk.ledger().items() if op == "fused_adamw")


def test_a_run_goes_on_from_paddles_state():
    (ours, tensors), (paddles, others) = optimizers(learning_rate=0.01)
    train(paddles, others)
    for tensor, other in zip(tensors, others, strict=True):
        tensor.set_value(other)
    ours.set_state_dict(paddles.state_dict())
    train(ours, tensors)
    train(paddles, others)
    np.testing.assert_allclose(tensors[0].numpy(), others[0].numpy(), rtol=2e-6, atol=2e-6)


def test_grad_scale_is_a_scaled_gradient():
    (ours, tensors), (paddles, others) = optimizers(learning_rate=0.01, epsilon=1e-2)
    train(ours, tensors, grad_scale=0.25)
    for number in range(5):
        (0.25 * loss_of(others, number)).backward()
        paddles.step()
        paddles.clear_grad()
    np.testing.assert_allclose(tensors[0].numpy(), others[0].numpy(), rtol=2e-6, atol=2e-6)


def test_global_norm():
    arrays = [
        np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, shape in enumerate([(300, 700), 5])
    ]
    want = np.sqrt(sum(np.sum(array.astype(np.float64) ** 2) for array in arrays))
    assert global_norm(map(paddle.to_tensor, arrays)) == pytest.approx(want, rel=1e-6)


def updated(shape, transposed=()):
    """The parameter and its moments after a composed update; the tensors at these places are views."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape), 0.1 * rng.standard_normal(shape), 0.1 * rng.standard_normal(shape)]
    tensors = [paddle.to_tensor(array.astype(np.float32)) for array in [*arrays, 0.01 * rng.random(shape)]]
    for place in transposed:
        tensors[place] = tensors[place].t().contiguous().t()
    scalars = {"learning_rate": 1e-2, "beta1_power": 0.9**3, "beta2_power": 0.999**3, "grad_scale": 0.037}
    with fk.use_backend("eager"):
        fk.fused_adamw(*tensors, **scalars)
    changed = [tensor.inplace_version > 0 for tensor in tensors]
    assert changed == [True, False, True, True]  # autograd knows a change by it
    return [tensor.numpy().view(np.int32) for tensor in (tensors[0], *tensors[2:])]


# Parts of 130 elements: so many rows in each. They begin at a multiple of 64 elements.
PARTS = {
    (): [1],
    (0, 5): [0],
    (17,): [17],
    (4099,): [128] * 32 + [3],
    (150, 65): [64, 64, 22],
    (7, 96): [2, 2, 2, 1],
    (5, 2, 32): [2, 2, 1],
    (3, 640): [1, 1, 1],
}


@pytest.mark.parametrize(("shape", "parts"), PARTS.items(), ids=map(str, PARTS))
def test_a_composed_update_in_parts_has_the_bits_of_a_whole_one(monkeypatch, shape, parts):
    whole = updated(shape)
    found = count_parts(monkeypatch, elements=130)
    for value, wanted in zip(updated(shape), whole, strict=True):
        np.testing.assert_array_equal(value, wanted)
    assert found == parts


def test_a_composed_update_reaches_a_view_of_other_strides(monkeypatch):
    whole = updated((150, 64))
    count_parts(monkeypatch, elements=130)
    for value, wanted in zip(updated((150, 64), transposed=(0, 1)), whole, strict=True):
        np.testing.assert_array_equal(value, wanted)


def count_parts(monkeypatch, elements):
    """Has parts of so many elements; the rows of each come into the list."""
    counts, parts = [], eager_fused_adamw.parts

    def counted(tensors):
        for part in parts(tensors):
            counts.append(part[0].shape[0] if part[0].shape else 1)
            yield part

    monkeypatch.setattr(eager_fused_adamw, "PART_ELEMENTS", elements)
    monkeypatch.setattr(eager_fused_adamw, "parts", counted)
    return counts
