"""Faults in the middle of a fused op, and fused ops of several groups in one step."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from fusionkit_backends.cpu import overlap
from fusionkit_backends.cpu.packed_operand import PackedOperand

import fusionkit as fk
from fusionkit.parallel import CommunicatorError
from fusionkit.parallel.parity import run_ranks
from tests.op_names import COLLECTIVE_OPS


@pytest.mark.parametrize("op", COLLECTIVE_OPS)
@pytest.mark.parametrize(("transport", "world_size"), [("memory", 2), ("tcp", 3)])
def test_a_rank_that_is_killed_in_a_fused_op_ends_the_others(start, tmp_path, op, transport, world_size):
    (tmp_path / "started").mkdir()
    ranks = start("fused_forever", world_size, transport=transport, op=op, started=str(tmp_path / "started"))
    ranks.kill(world_size - 1, tmp_path / "started")
    begin = time.monotonic()
    results = ranks.results()
    assert time.monotonic() - begin < 10  # far below the timeout of 30 s
    assert results[-1] is None
    for result in results[:-1]:
        assert isinstance(result, CommunicatorError)
        assert f"rank {world_size - 1} must answer within 30 s, got a process that has ended" in str(result)


class Broken(Exception):
    pass


@pytest.mark.parametrize("op", COLLECTIVE_OPS)
def test_an_error_in_one_ranks_product_ends_the_others(op, monkeypatch):
    """And is the one that is told."""
    of_thread, multiply = threading.local(), PackedOperand.multiply

    def breaks(*args):
        of_thread.products += 1
        if of_thread.rank == 1 and of_thread.products == 2:
            raise Broken("the second product")
        return multiply(*args)

    monkeypatch.setattr(PackedOperand, "multiply", breaks)
    others = []

    def run(rank, communicator):
        of_thread.rank, of_thread.products = rank, 0
        x, weight = np.ones((512, 256), "f"), np.ones((256, 128), "f")
        with overlap.overlapped():
            try:
                getattr(fk, op)(x, weight, group=communicator)
            except CommunicatorError as error:
                others.append(str(error))
                raise

    begin = time.monotonic()
    with pytest.raises(Broken, match="the second product"):
        run_ranks(2, run)
    assert time.monotonic() - begin < 10
    assert len(others) == 1 and "a rank that has left" in others[0]


@pytest.mark.parametrize("op", COLLECTIVE_OPS)
def test_ranks_that_do_not_all_overlap_are_told_what_each_called(op):
    def run(rank, communicator):
        x, weight = np.ones((512, 256), "f"), np.ones((256, 128), "f")
        with overlap.overlapped() if rank == 0 else overlap.serially():
            getattr(fk, op)(x, weight, group=communicator)

    begin = time.monotonic()
    with pytest.raises(CommunicatorError, match="all ranks must make the same call"):
        run_ranks(2, run)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
def test_two_groups_accumulate_the_gradients_of_one_process(start, recomputes):
    """Tensor parallel 2 with sequence parallelism, times data parallel 2, two micro-batches each."""
    generator = np.random.default_rng(7)
    arrays = {
        "x": generator.standard_normal((2, 2, 8, 3, 6)),  # replica, micro-batch, sequence, batch, features
        "first": generator.standard_normal((6, 10)),
        "second": generator.standard_normal((10, 4)),
        "dy": generator.standard_normal((2, 2, 8, 3, 4)),
    }
    arrays = {name: array.astype("f").astype(float) for name, array in arrays.items()}
    ranks = start(
        "accumulated", 4, arrays={name: each.tolist() for name, each in arrays.items()}, recomputes=recomputes
    )
    results = ranks.results()
    x, first, second, dy = arrays.values()
    hidden = np.maximum(x @ first, 0)
    d_hidden = (dy @ second.T) * (hidden > 0)
    exact = {
        "first": np.einsum("rmsbk,rmsbn->kn", x, d_hidden),
        "second": np.einsum("rmsbk,rmsbn->kn", hidden, dy),
    }
    for rank, result in enumerate(results):
        assert not isinstance(result, Exception), result
        y, gradients, num_fused = result
        np.testing.assert_allclose(y, np.split((hidden @ second)[rank // 2, 1], 2)[rank % 2], atol=2e-5)
        for name, axis in (("first", 1), ("second", 0)):
            np.testing.assert_allclose(gradients[name], np.split(exact[name], 2, axis)[rank % 2], atol=2e-4)
        assert num_fused >= 4  # two layers, two micro-batches, forward
