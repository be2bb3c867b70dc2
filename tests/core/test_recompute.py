"""A recomputed region keeps the policy of its first run, also when `use_backend` was left before `backward()`."""

from __future__ import annotations

import paddle
import pytest

import fusionkit as fk
from fusionkit.nn import recompute


def chain(x, weight):
    return fk.fusion_rms_norm(fk.fusion_rms_norm(x, weight), weight)


def gradients(run):
    paddle.seed(0)
    x, weight = paddle.randn([3, 16]), paddle.randn([16])
    x.stop_gradient = weight.stop_gradient = False
    return x, weight, run(x, weight)


def backends_that_ran():
    return {backend: count for (_, backend, _), count in fk.ledger().items()}


@pytest.mark.parametrize("inside, outside", [("eager", "cpu"), ("cpu", "eager")])
def test_policy_is_kept_when_the_context_was_left(inside, outside):
    with fk.use_backend(inside):
        x, weight, y = gradients(lambda x, weight: recompute(chain, x, weight))
    with fk.use_backend(outside):
        y.sum().backward()
    assert backends_that_ran() == {inside: 4}
    assert x.grad is not None and weight.grad is not None


def test_gradients_equal_those_without_recomputation():
    x1, w1, y1 = gradients(lambda x, weight: recompute(chain, x, weight))
    x2, w2, y2 = gradients(chain)
    y1.sum().backward()
    y2.sum().backward()
    assert bool((x1.grad == x2.grad).all()) and bool((w1.grad == w2.grad).all())


def test_the_callers_policy_is_restored_after_the_recomputation():
    with fk.use_backend("eager"):
        _, _, y = gradients(lambda x, weight: recompute(chain, x, weight))
    y.sum().backward()
    assert fk.fusion_rms_norm.explain(paddle.ones([2, 8]), paddle.ones([8])).chosen == "cpu"
