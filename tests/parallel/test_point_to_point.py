"""Exchanges of tensors between ranks: a ring of three in both directions at once, and two ranks that meet twice."""

from __future__ import annotations

import threading

import numpy as np
import paddle
import pytest

from fusionkit.parallel.parity import run_ranks
from fusionkit.parallel.point_to_point import Exchange

LARGE = 300_000  # does not leave before it is taken


def tensor(number, dtype, size=LARGE):
    return paddle.full([2, size], number, "float32").astype(dtype)


def around(rank, group, dtype):
    """What came from both neighbours, sent before any receipt."""
    before, after = (rank - 1) % group.world_size, (rank + 1) % group.world_size
    arriving = [tensor(-1, dtype) for _ in range(2)]
    exchange = Exchange(
        [(tensor(rank, dtype), after), (tensor(rank + 10, dtype), before)],
        [(arriving[1], after), (arriving[0], before)],
        group,
    )
    exchange.wait_received()
    exchange.wait()
    exchange.wait()
    return [set(each.astype("float32").numpy().flatten().tolist()) for each in arriving]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64"])
def test_neighbours_hand_tensors_both_ways(dtype):
    for rank, (from_before, from_after) in enumerate(run_ranks(3, lambda rank, group: around(rank, group, dtype))):
        assert (from_before, from_after) == ({(rank - 1) % 3}, {(rank + 1) % 3 + 10})


def test_exchanges_match_in_the_order_in_which_they_begin():
    def run(rank, group):
        arriving = [tensor(-1, "float32", size) for size in (LARGE, 3)]
        exchanges = [
            Exchange(
                [(tensor(number, "float32", into.shape[1]), 1 - rank)] if rank == 0 else [],
                [] if rank == 0 else [(into, 1 - rank)],
                group,
            )
            for number, into in enumerate(arriving)
        ]
        for exchange in reversed(exchanges):
            exchange.wait()
        return [np.unique(into.numpy()).tolist() for into in arriving]

    assert run_ranks(2, run)[1] == [[0], [1]]


def test_an_exchange_is_completed_when_its_tensors_are_taken():
    asked = threading.Event()

    def run(rank, group):
        if rank == 1:
            asked.wait(60)
            Exchange([], [(tensor(-1, "float32"), 0)], group).wait()
            return None
        exchange = Exchange([(tensor(0, "float32"), 1)], [], group)
        before = exchange.is_completed()
        asked.set()
        exchange.wait()
        return before, exchange.is_completed()

    assert run_ranks(2, run)[0] == (False, True)


def test_a_peer_that_leaves_ends_the_wait_with_its_rank():
    def run(rank, group):
        if rank == 1:
            return None
        arriving = tensor(-1, "float32")
        with pytest.raises(RuntimeError, match="rank 1 must answer within .*, got a rank that has left"):
            Exchange([], [(arriving, 1)], group).wait()
        return True

    assert run_ranks(2, run)[0]
