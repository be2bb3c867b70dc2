"""Calls that go on while the process does something else."""

from __future__ import annotations

import resource

import ml_dtypes
import numpy as np
import pytest

from fusionkit.parallel import Communicator, sum_in_order, unique_id
from tests.parallel.ranks import SIZES

TRANSPORTS = ("memory", "tcp", "mixed")


@pytest.mark.parametrize(("transport", "world_size"), [("memory", 1), ("memory", 4), ("tcp", 3), ("mixed", 4)])
def test_calls_in_flight_give_the_bits_of_blocking_ones(start, transport, world_size):
    for passed in start("overlapping", world_size, transport=transport, rounds=3).results():
        assert not isinstance(passed, Exception), passed
        assert len(passed) == len(SIZES) * 19
        assert all(passed)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_results_go_where_they_are_wanted(start, transport):
    assert start("into_views", 3, transport=transport).results() == [True] * 3


@pytest.mark.parametrize("transport", ("memory", "tcp"))
def test_calls_in_turn_do_not_share_the_link(start, transport):
    assert start("turns", 3, transport=transport, in_turn=True).results()[2] is False
    assert start("turns", 3, transport=transport, in_turn=False).results()[2] is True


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_failure_reaches_every_work(start, transport):
    *results, last = start("works_of_a_dead_peer", 3, transport=transport).results()
    assert last is None
    for texts in results:
        assert len(texts) == 3
        assert all("rank 2 must answer within 30 s, got a process that has ended" in text for text in texts)


@pytest.mark.parametrize("transport", ("memory", "tcp"))
def test_closing_with_works_in_flight_is_safe(start, transport):
    assert "closed before the call was done" in start("closing", 2, transport=transport).results()[0]


@pytest.mark.parametrize("source", (np.float32, np.float16, ml_dtypes.bfloat16))
@pytest.mark.parametrize("target", (np.float32, np.float16, ml_dtypes.bfloat16))
def test_sums_in_order_are_rounded_once(source, target):
    generator = np.random.default_rng(1)
    arrays = [generator.standard_normal((3, 411)).astype(source) for _ in range(5)]
    total = arrays[0].astype(np.float32)
    for each in arrays[1:]:
        total = total + each.astype(np.float32)
    out = sum_in_order(arrays, np.empty((3, 411), target))
    assert np.array_equal(out, total.astype(target))
    if source is target:
        assert sum_in_order(arrays, arrays[2]) is arrays[2]
        assert np.array_equal(arrays[2], out)


def test_sums_refuse_what_has_no_order():
    with pytest.raises(TypeError, match="float16, bfloat16 or float32, got int32"):
        sum_in_order([np.ones(2, "int32")], np.ones(2, "f"))
    with pytest.raises(ValueError, match=r"arrays must be contiguous and \[2\], got \[3\]"):
        sum_in_order([np.ones(3, "f")], np.ones(2, "f"))


def test_a_rank_alone_does_not_wait():
    with Communicator(unique_id(), 0, 1) as alone:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        for _ in range(100):
            alone.all_reduce(np.ones(3))
            alone.barrier()
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < 20  # no call sleeps
