"""A rank that is dead, late or does something else is an error on all ranks, in time, and leaves nothing behind."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from fusionkit.parallel import Communicator, CommunicatorError, unique_id


@pytest.mark.parametrize("size", (8, 1_000_000))
def test_a_killed_rank_ends_the_others(start, size):
    ranks = start("forever", 8, size=size)
    time.sleep(2)
    assert all(process.poll() is None for process in ranks.processes)
    ranks.kill(5)
    begin = time.monotonic()
    results = ranks.results()
    assert time.monotonic() - begin < 5  # far below the timeout of 30 s
    for rank, result in enumerate(results):
        if rank == 5:
            assert result is None
            continue
        assert isinstance(result, CommunicatorError)
        assert "all_reduce: rank 5 must answer within 30 s, got a process that has ended" in str(result)


def test_a_late_rank_is_named_within_the_timeout(start):
    results = start("late", 3, timeout=1, sleeper=2, seconds=3).results()
    for result in results:
        assert isinstance(result, CommunicatorError)
        assert "all_gather: rank 2 must answer within 1 s, got nothing" in str(result)


@pytest.mark.parametrize(
    ("how", "texts"),
    [
        ("shape", ("all_reduce (sum) of 8 float32", "all_reduce (sum) of 9 float32")),
        ("dtype", ("all_gather of 8 float32", "all_gather of 8 int32")),
        ("op", ("barrier", "broadcast of 8 float32 with root 0")),
        ("reduction", ("all_reduce (sum)", "all_reduce (max)")),
        ("root", ("with root 0", "with root 1")),
        ("pair", ("send of 8 float32", "send of 3 float64")),
    ],
)
def test_a_rank_that_calls_something_else_is_named(start, how, texts):
    begin = time.monotonic()
    for result in start("different", 3, how=how).results():
        assert isinstance(result, CommunicatorError)
        assert "all ranks must make the same call" in str(result)
        assert all(text in str(result) for text in (*texts, "rank 1"))
    assert time.monotonic() - begin < 20


def test_nothing_is_left_in_dev_shm(start):
    before = sorted(name for name in os.listdir("/dev/shm") if "fusionkit" in name)
    for names, mapped in start("segments", 2).results():
        assert mapped
        assert [name for name in names if "fusionkit" in name] == before


def test_ranks_that_do_not_join_are_named():
    with pytest.raises(CommunicatorError, match=r"all 4 ranks must join within 0 s, rank 1, 2, 3 did not"):
        Communicator(unique_id(), 0, 4, timeout=0.2)
    with pytest.raises(CommunicatorError, match="rank 0 must join"):
        Communicator(unique_id(), 1, 4, timeout=0.2)


def test_arguments_that_no_rank_can_use():
    with Communicator(unique_id(), 0, 1) as alone:
        with pytest.raises(ValueError, match="op must be one that complex64 has, got max"):
            alone.all_reduce(np.ones(2, "complex64"), "max")
        with pytest.raises(ValueError, match="op must be one of sum"):
            alone.all_reduce(np.ones(2), "xor")
        with pytest.raises(TypeError, match="dtype must be one of"):
            alone.all_gather(np.array(["a"]))
        with pytest.raises(ValueError, match=r"array must be \[1, ...\]"):
            alone.reduce_scatter(np.ones(2))
    with pytest.raises(CommunicatorError, match="closed"):
        alone.barrier()
