"""A rank that computes longer than its like, without the time that it waits for them, is named once."""

from __future__ import annotations

import platform
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.train.slow_ranks import STEPS, SlowRanks, factors
from fusionkit.parallel import waited_seconds
from fusionkit.parallel.parity import run_ranks
from tests.hanging import HANGING
from tests.launch import LAUNCH
from tests.llama.conftest import EXAMPLE
from tests.llama.meshes import on_mesh
from tests.llama.test_sft_processes import command, environment, printed

FOUR = Degrees(data=2, pipeline=2)  # ranks 0 and 2 are first stages, 1 and 3 last ones


def told(degrees, steps):
    """The lines of each look on every rank; `steps` has the times of all ranks for each."""

    def look(mesh):
        slow = SlowRanks(mesh)
        return [slow.look(times[mesh.world.rank]) for times in steps]

    return on_mesh(degrees, look)


def test_a_slow_rank_is_told_once_on_all_processes():
    answers = told(FOUR, [[1, 2, 1.6, 2]] * (2 * STEPS))
    line = (
        f"rank 2 on host {platform.node()} computed 1.6 times as long as the median of its like in 5 steps in a row; "
        "the others wait for it"
    )
    assert answers == [[[]] * (STEPS - 1) + [[line]] + [[]] * STEPS] * 4


def test_the_host_that_is_named_is_that_of_the_slow_rank(monkeypatch):
    mine = threading.local()
    monkeypatch.setattr(platform, "node", lambda: f"host-{mine.rank}")

    def look(mesh):
        mine.rank, slow = mesh.world.rank, SlowRanks(mesh)
        return [slow.look([1, 1, 3][mine.rank]) for _ in range(STEPS)][-1]

    for (line,) in on_mesh(Degrees(data=3), look):
        assert line.startswith("rank 2 on host host-2 computed 3.0 times")


def test_a_step_in_between_begins_the_count_again():
    slow, equal = [1, 1, 9, 1], [1, 1, 1, 1]
    steps = [slow] * (STEPS - 1) + [equal] + [slow] * STEPS
    for lines in told(FOUR, steps):
        assert [len(each) for each in lines] == [0] * (2 * STEPS - 1) + [1]


def test_a_rank_that_is_a_little_slower_is_not_told():
    """The others wait for less than a third of their time."""
    assert told(Degrees(data=3), [[1, 1.4, 1]] * (2 * STEPS)) == [[[]] * (2 * STEPS)] * 3
    for lines in told(Degrees(data=3), [[1, 1.5, 1]] * STEPS):
        assert [len(each) for each in lines] == [0] * (STEPS - 1) + [1]


def test_a_rank_is_compared_with_those_that_have_the_same_work():
    assert factors([1, 3, 1, 3], [0, 1, 0, 1]) == [1, 1, 1, 1]
    assert factors([1, 3, 2, 3], [0, 1, 0, 1]) == [1, 1, 2, 1]
    assert factors([2, 3, 2, 2], [0, 1, 2, 3]) == [1, 1.5, 1, 1]  # one a stage
    assert factors([1, 1, 1, 4], [0, 0, 0, 0]) == [1, 1, 1, 4]
    assert factors([0, 0], [0, 0]) == [0, 0]


def test_one_process_has_nobody_to_wait_for():
    assert on_mesh(Degrees(), lambda mesh: SlowRanks(mesh).look(1.0)) == [[]]


@pytest.mark.parametrize("sync_op", [True, False])
def test_time_that_a_rank_waits_is_counted(sync_op):
    def one(rank, communicator):
        communicator.barrier()
        time.sleep(0.5 * rank)
        before = waited_seconds()
        work = communicator.all_reduce(np.ones(8), sync_op=sync_op)
        if not sync_op:
            work.wait()
        return waited_seconds() - before

    first, second = run_ranks(2, one)
    assert first > 0.4 and first - second > 0.3  # less than 0.5 where the other rank's thread begins later


def test_a_rank_that_sleeps_is_named_on_the_first(tiny_folder, few_samples, tmp_path):
    """The layers of both ranks wait for each other, so their steps take the same time."""
    log = tmp_path / "log"
    flags = {"dataset_name_or_path": few_samples, "tensor_parallel_degree": 2, "max_steps": STEPS + 1}
    words = command(2, tmp_path / "out", tiny_folder, log, launch=[LAUNCH], **flags, max_length=128)
    place = words.index(str(EXAMPLE / "sft.py"))
    words[place : place + 1] = [str(Path(__file__).with_name("slow_rank.py")), "2"]
    settings = environment() | {"PYTHONPATH": str(EXAMPLE.parents[1])}
    done = subprocess.run(words, env=settings, capture_output=True, text=True, timeout=HANGING)
    assert done.returncode == 0, printed(log)
    first, second = ((log / f"workerlog.{rank}").read_text() for rank in (0, 1))
    assert first.count(f"rank 1 on host {platform.node()} computed ") == 1, first
    assert "steps in a row" not in second and "rank 0 on host" not in first
