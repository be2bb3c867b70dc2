"""The cpu kernels are differentiable once: in dynamic mode Paddle refuses a gradient of a gradient, with advice."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import fusionkit as fk
from fusionkit import parity
from fusionkit.frameworks.paddle import over_tensors
from tests.op_names import NEUTRAL_OPS

HEADS = [1, 3, 2, 4]  # batch_size, seq_len, num_heads, head_dim
ANGLES = np.arange(6, dtype="float32").reshape(3, 2)
LABELS = np.array([1, 0, 4])


def rope(q, k, **options):
    return fk.fusion_rope(q, k, paddle.to_tensor(np.cos(ANGLES)), paddle.to_tensor(np.sin(ANGLES)), **options)


def rope_of_positions(q, k):
    return rope(q, k, position_ids=paddle.to_tensor([[2, 0, 1]]))


def masked_attention(q, k, v):
    return fk.flash_attention(q, k, v, attn_mask=paddle.zeros([1, 1, 3, 3]))


def attention_with_lse(q, k, v):
    return fk.flash_attention(q, k, v, causal=True, return_lse=True)


def cross_entropy(x, weight):
    return fk.fused_linear_cross_entropy(x, weight, paddle.to_tensor(LABELS))[0]


def call_of(name):
    """An op that is not in the list below, at the sizes of its first case; its other arguments are the case's."""
    spec = getattr(fk, name).spec
    made = parity.arguments_of(spec, next(case for case in spec.cases if not case.llama), "float32")
    wanted = [each.name for each in spec.inputs if each.differentiable and made.get(each.name) is not None]
    fixed = {key: over_tensors(value, "cpu") for key, value in made.items() if key not in wanted}
    shapes = [list(made[each].shape) for each in wanted]
    return lambda *tensors: getattr(fk, name)(**dict(zip(wanted, tensors, strict=True)), **fixed), *shapes


DIFFERENTIABLE = [name for name in NEUTRAL_OPS if getattr(fk, name).spec.reference_vjp is not None]
CALLS = {
    "fusion_rms_norm": (fk.fusion_rms_norm, [3, 8], [8]),
    "fusion_add_rms_norm": (fk.fusion_add_rms_norm, [3, 8], [3, 8], [8]),
    "fusion_rope": (rope, HEADS, HEADS),
    "fusion_rope, position_ids": (rope_of_positions, HEADS, HEADS),
    "flash_attention": (fk.flash_attention, HEADS, HEADS, HEADS),
    "flash_attention, mask": (masked_attention, HEADS, HEADS, HEADS),
    "flash_attention, lse": (attention_with_lse, HEADS, HEADS, HEADS),
    "swiglu": (fk.swiglu, [3, 8], [3, 8]),
    "fused_linear": (fk.fused_linear, [3, 8], [8, 5]),
    "fused_linear, bias": (fk.fused_linear, [3, 8], [8, 5], [5]),
    "fused_linear_cross_entropy": (cross_entropy, [3, 8], [8, 5]),
}
CALLS |= {name: call_of(name) for name in DIFFERENTIABLE if name not in CALLS}
EACH_GRADIENT = [(label, i) for label, (_, *shapes) in CALLS.items() for i in range(len(shapes))]


def inputs(label):
    paddle.seed(0)
    tensors = [paddle.randn(shape) for shape in CALLS[label][1:]]
    for tensor in tensors:
        tensor.stop_gradient = False
    return tensors


def loss_of(label, tensors):
    """Not linear in any output, so that every gradient depends on every input."""
    outputs = CALLS[label][0](*tensors)
    return sum(y.pow(2).sum() for y in (outputs if isinstance(outputs, tuple) else (outputs,)))


@pytest.mark.parametrize("label, i", EACH_GRADIENT)
def test_gradient_of_each_gradient_is_refused(label, i):
    tensors = inputs(label)
    loss = loss_of(label, tensors)
    (gradient,) = paddle.grad(loss, tensors[i], create_graph=True)
    name = label.partition(",")[0]
    with pytest.raises(ValueError, match=rf'{name}: the cpu kernel is differentiable once.*use_backend\("eager"\)'):
        (loss + gradient.pow(2).sum()).backward()


@pytest.mark.parametrize("label", CALLS)
def test_first_gradients_are_the_same_with_and_without_a_graph(label):
    tensors = inputs(label)
    kept = paddle.grad(loss_of(label, tensors), tensors, create_graph=True)
    loss = loss_of(label, tensors)
    loss.backward(retain_graph=True)
    loss.backward()
    for tensor, gradient in zip(tensors, kept, strict=True):
        np.testing.assert_array_equal(tensor.grad.numpy(), 2 * gradient.numpy())


@pytest.mark.parametrize("label", CALLS)
def test_ordinary_training_keeps_no_graph_of_the_gradient(label):
    tensors = inputs(label)
    loss_of(label, tensors).backward()
    assert all(tensor.grad.grad_fn is None and tensor.grad.stop_gradient for tensor in tensors)


def test_the_backend_of_the_advice_gives_the_second_derivative():
    x, weight = inputs("fusion_rms_norm")

    def penalty():
        (gradient,) = paddle.grad(fk.fusion_rms_norm(x, weight).pow(2).sum(), x, create_graph=True)
        return gradient.pow(2).sum()

    with fk.use_backend("eager"):
        penalty().backward()
        step, base = 1e-3, x.detach().clone()
        values = []
        for sign in (1, -1):
            shift = paddle.zeros_like(base)
            shift[1, 2] = sign * step
            x.set_value(base + shift)
            values.append(float(penalty()))
    assert float(x.grad[1, 2]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-2)
