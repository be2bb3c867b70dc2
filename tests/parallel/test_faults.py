"""A rank that is dead, late or does something else is an error on all ranks, in time, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fusionkit.parallel import Communicator, CommunicatorError, group, unique_id
from tests.hanging import HANGING


@pytest.mark.parametrize("size", (8, 1_000_000))
@pytest.mark.parametrize(("transport", "world_size"), [("memory", 8), ("tcp", 3), ("mixed", 4)])
def test_a_killed_rank_ends_the_others(start, tmp_path, transport, world_size, size):
    (tmp_path / "started").mkdir()
    ranks = start("forever", world_size, transport=transport, size=size, started=str(tmp_path / "started"))
    ranks.kill(world_size - 2, tmp_path / "started")
    begin = time.monotonic()
    results = ranks.results()
    assert time.monotonic() - begin < 5  # far below the timeout of 30 s
    for rank, result in enumerate(results):
        if rank == world_size - 2:
            assert result is None
            continue
        assert isinstance(result, CommunicatorError)
        assert f"rank {world_size - 2} must answer within 30 s, got a process that has ended" in str(result)


@pytest.mark.parametrize("transport", ("memory", "tcp", "mixed"))
def test_a_late_rank_is_named_within_the_timeout(start, transport):
    results = start("late", 3, timeout=2, transport=transport, sleeper=2, seconds=5).results()
    for result in results:
        assert isinstance(result, CommunicatorError)
        assert "all_gather: rank 2 must answer within 2 s, got nothing" in str(result)


@pytest.mark.parametrize(
    ("transport", "how", "texts"),
    [
        ("memory", "shape", ("all_reduce (sum) of 8 float32", "all_reduce (sum) of 9 float32")),
        ("memory", "dtype", ("all_gather of 8 float32", "all_gather of 8 int32")),
        ("memory", "op", ("barrier", "broadcast of 8 float32 with root 0")),
        ("memory", "reduction", ("all_reduce (sum)", "all_reduce (max)")),
        ("memory", "root", ("with root 0", "with root 1")),
        ("memory", "pair", ("send of 8 float32", "send of 3 float64")),
        ("tcp", "shape", ("all_reduce (sum) of 8 float32", "all_reduce (sum) of 9 float32")),
        ("tcp", "pair", ("send of 8 float32", "send of 3 float64")),
        ("mixed", "op", ("barrier", "broadcast of 8 float32 with root 0")),
    ],
)
def test_a_rank_that_calls_something_else_is_named(start, transport, how, texts):
    begin = time.monotonic()
    for result in start("different", 3, transport=transport, how=how).results():
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
    with pytest.raises(CommunicatorError, match=r"all 4 ranks must join within 0.2 s, rank 1, 2, 3 did not"):
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


def test_a_forked_child_neither_uses_nor_leaves_its_parents_communicator():
    script = """
import os, numpy as np
from fusionkit.parallel import Communicator, CommunicatorError
from fusionkit.parallel.parity import run_ranks

def run(rank, communicator):
    works = [communicator.all_reduce(np.ones(8), sync_op=False) for _ in range(3)]  # the thread is there
    [work.wait() for work in works]
    communicator.barrier()
    if rank == 0 and (child := os.fork()) == 0:
        try:
            communicator.barrier()
        except CommunicatorError as error:
            communicator.close()
            os._exit(3 if "must be used in the process that made it" in str(error) else 4)
        os._exit(5)
    if rank == 0:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return float(communicator.all_reduce(np.ones(1))[0])

print(run_ranks(2, run))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANGING)
    assert done.stdout == "3\n[2.0, 2.0]\n", done.stderr


def interrupt_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


@contextlib.contextmanager
def two_ranks(timeout: float = 30):
    """Both in this process: the second joins on a thread."""
    identifier = unique_id()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(Communicator, identifier, 1, 2, timeout=timeout)
        with Communicator(identifier, 0, 2, timeout=timeout) as own, other.result() as peer:
            yield own, peer, pool


def test_ctrl_c_ends_a_call_that_waits_and_the_other_rank_is_told():
    with two_ranks() as (own, peer, _):
        begin = time.monotonic()
        timer = interrupt_after(0.2)
        with pytest.raises(KeyboardInterrupt):
            own.all_reduce(np.ones(4))
        timer.join()
        with pytest.raises(CommunicatorError, match="a call was interrupted on rank 0"):
            peer.all_reduce(np.ones(4))
        assert time.monotonic() - begin < 5


def test_ctrl_c_while_work_is_awaited_leaves_the_work_going():
    with two_ranks() as (own, peer, pool):
        work = own.all_reduce(np.ones(4), sync_op=False)
        timer = interrupt_after(0.2)
        with pytest.raises(KeyboardInterrupt):
            work.wait()
        timer.join()
        pool.submit(peer.all_reduce, np.ones(4)).result()
        np.testing.assert_array_equal(work.wait(), np.full(4, 2.0))


@pytest.mark.parametrize("is_progressing", (False, True))
def test_a_close_on_another_thread_ends_a_call_that_waits(is_progressing):
    with two_ranks() as (own, _, pool):
        if is_progressing:
            own.barrier(sync_op=False)
        waiting = pool.submit(own.all_reduce, np.ones(4))
        time.sleep(0.2)
        begin = time.monotonic()
        own.close()
        with pytest.raises(CommunicatorError, match="it was closed before the call was done"):
            waiting.result()
        assert time.monotonic() - begin < 5


def test_a_signals_handler_may_close_what_its_thread_waits_for():
    with two_ranks() as (own, peer, _):
        before = signal.signal(signal.SIGUSR1, lambda *_: own.close())
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        try:
            with pytest.raises(CommunicatorError, match="it was closed before the call was done"):
                own.all_reduce(np.ones(4))
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)
        np.testing.assert_array_equal(peer.all_reduce(np.ones(4)), np.full(4, 2.0))  # what had been sent arrives
        with pytest.raises(CommunicatorError, match="a rank that has left"):
            peer.barrier()


def test_a_signals_handler_that_calls_what_its_thread_waits_for_is_refused():
    refused = threading.Event()

    def handler(*_):
        with pytest.raises(CommunicatorError, match="a signal's handler must not make calls"):
            own.barrier()
        refused.set()

    def answer(peer):
        assert refused.wait(20)
        return peer.all_reduce(np.ones(4))

    with two_ranks() as (own, peer, pool):
        before = signal.signal(signal.SIGUSR1, handler)
        answered = pool.submit(answer, peer)
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        try:
            np.testing.assert_array_equal(own.all_reduce(np.ones(4)), np.full(4, 2.0))
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)
        answered.result()


def test_a_group_whose_communicator_was_closed_is_refused():
    closed = pytest.raises(CommunicatorError, match="it was closed before the call was done")
    with two_ranks() as (own, _, _pool), closed, group():
        own.send(np.ones(4), 1)
        own.close()


def test_threads_that_close_while_others_call_leave_once():
    """1 of 4 threads closes, the others call until they are told."""
    for _ in range(20):
        with two_ranks() as (own, _, _pool), ThreadPoolExecutor(4) as callers:

            def call(own=own):
                while True:
                    own.all_reduce(np.ones(4), sync_op=False)
                    own.barrier()

            futures = [callers.submit(call) for _ in range(3)]
            closers = [callers.submit(own.close), callers.submit(own.close)]
            for each in closers:
                each.result(timeout=20)
            for each in futures:
                assert isinstance(each.exception(timeout=20), CommunicatorError)
