"""fused_linear_cross_entropy with a group: beside one rank that has the whole vocabulary, and ranks that fail."""

from __future__ import annotations

import time

import numpy as np
import paddle
import pytest

import fusionkit as fk
from fusionkit.ledger import ledger
from fusionkit.parallel import CommunicatorError, collectives
from fusionkit.parallel.parity import run_ranks

WIDTHS = (40, 1, 23, 33)


def call():
    generator = np.random.default_rng(7)
    x, weight = generator.standard_normal((70, 24)), generator.standard_normal((24, sum(WIDTHS))) / 5
    labels = generator.integers(0, sum(WIDTHS), 70)
    labels[:8] = [0, 39, 40, 41, 63, 64, 96, -100]  # each rank's first and last entry
    return x.astype("f"), weight.astype("f"), labels


def trained(x, weight, labels, communicator, rows):
    """Loss, count and gradients of a mean loss; `rows` under sequence parallelism, where a rank has a part of x."""
    x, weight = paddle.to_tensor(x, stop_gradient=False), paddle.to_tensor(weight, stop_gradient=False)
    replicated = (collectives.all_gather if rows else collectives.identity)(x, communicator)
    loss, count = fk.fused_linear_cross_entropy(replicated, weight, paddle.to_tensor(labels), group=communicator)
    (loss / count.astype("float32")).backward()
    return float(loss), int(count), x.grad.numpy(), weight.grad.numpy()


@pytest.mark.parametrize("rows", [False, True], ids=["replicated", "sequence"])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("widths", [(50, 47), WIDTHS], ids=["two", "four-uneven"])
def test_summed_parts_are_the_gradient_of_the_whole_vocabulary(widths, backend, rows):
    x, weight, labels = call()
    if rows:
        x, labels = x[:68], labels[:68]
    mean = np.float64(1 / (labels != -100).sum())
    loss, count = fk.fused_linear_cross_entropy.reference(x, weight, labels)
    want = fk.fused_linear_cross_entropy.reference_vjp(x, weight, labels, grad_outputs=(mean, None))
    shards = np.split(weight, np.cumsum(widths)[:-1], axis=1)
    ledger().reset()

    def run(rank, communicator):
        own = np.split(x, len(widths))[rank] if rows else x
        with fk.use_backend(backend):
            return trained(own, shards[rank], labels, communicator, rows)

    results = run_ranks(len(widths), run)
    assert {name for op, name, _ in ledger() if op == "fused_linear_cross_entropy"} == {backend}
    assert len({result[:2] for result in results}) == 1  # the same bits on all ranks
    assert results[0][0] == pytest.approx(float(loss), rel=1e-6) and results[0][1] == count
    for rank, (_, _, dx, dweight) in enumerate(results):
        exact = np.split(want["x"], len(widths))[rank] if rows else want["x"]
        np.testing.assert_allclose(dx, exact, rtol=0, atol=2e-6 * np.abs(want["x"]).max())
        exact = np.split(want["weight"], np.cumsum(widths)[:-1], axis=1)[rank]
        np.testing.assert_allclose(dweight, exact, rtol=0, atol=2e-6 * np.abs(want["weight"]).max())


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_without_a_gradient_none_is_computed(backend):
    def run(rank, communicator):
        x, weight, labels = call()
        shards = np.split(weight, [50], axis=1)
        tensors = [paddle.to_tensor(x), paddle.to_tensor(shards[rank], stop_gradient=False), paddle.to_tensor(labels)]
        with fk.use_backend(backend), paddle.no_grad():
            loss, _ = fk.fused_linear_cross_entropy(*tensors, group=communicator)
        return loss.stop_gradient

    assert run_ranks(2, run) == [True, True]


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_label_outside_of_the_whole_vocabulary_is_refused_on_all_ranks(backend):
    def run(rank, communicator):
        labels = np.array([0, 5])
        with fk.use_backend(backend), pytest.raises(ValueError, match=r"labels must be in \[0, 5\).*got 5"):
            weight = np.ones((8, 2 + rank), "f")
            fk.fused_linear_cross_entropy(np.ones((2, 8), "f"), weight, labels, group=communicator)

    run_ranks(2, run)


@pytest.mark.parametrize(
    "change",
    [{"labels": np.array([1, 1])}, {"ignore_index": 3}, {"x": np.ones((2, 8), "f2")}],
    ids=lambda each: [*each][0],
)
def test_ranks_that_call_something_else_are_told_what_each_called(change):
    def run(rank, communicator):
        given = {"x": np.ones((2, 8), "f"), "weight": np.ones((8, 2), "f"), "labels": np.array([0, 3])}
        fk.fused_linear_cross_entropy(**given | (change if rank else {}), group=communicator)

    begin = time.monotonic()
    with pytest.raises(CommunicatorError, match="all ranks must make the same call"):
        run_ranks(2, run)
    assert time.monotonic() - begin < 10


class Broken(Exception):
    pass


def test_an_error_in_the_middle_of_one_rank_ends_the_others(monkeypatch):
    """It leaves the kernel, between the products of two chunks of tokens, and is the one that is told."""
    others = []

    def run(rank, communicator):
        gather = communicator.all_gather

        def breaks(array, **how):
            if rank == 1 and array.ndim == 2:
                raise Broken("the exchange")
            return gather(array, **how)

        monkeypatch.setattr(communicator, "all_gather", breaks)
        x, weight, labels = call()
        try:
            shard = np.split(weight, [50], axis=1)[rank]
            fk.fused_linear_cross_entropy(x, shard, labels, group=communicator)
        except CommunicatorError as error:
            others.append(str(error))
            raise

    begin = time.monotonic()
    with pytest.raises(Broken, match="the exchange"):
        run_ranks(2, run)
    assert time.monotonic() - begin < 10
    assert len(others) == 1 and "a rank that has left" in others[0]


def test_explain_names_the_number_of_ranks():
    specs = [fk.TensorSpec((7, 8), "float32"), fk.TensorSpec((8, 4), "float32"), fk.TensorSpec((7,), "int64")]
    explained = fk.fused_linear_cross_entropy.explain(*specs, group=fk.GroupSpec(2))
    assert explained.chosen == "cpu" and "world_size 2" in explained.call


def test_a_traced_program_is_refused_by_name():
    def program(x, weight, labels):
        return fk.fused_linear_cross_entropy(x, weight, labels, group=fk.GroupSpec(2))

    tensors = paddle.ones([2, 8]), paddle.ones([8, 4]), paddle.to_tensor([0, 3])
    with pytest.raises(fk.NoBackendError, match="a traced program holds no call of a group"):
        paddle.jit.to_static(program, full_graph=True)(*tensors)
