"""Ranks as processes: each runs one function of tests/parallel/ranks.py and sends back what it returns or raises.

They are forked by a process that has imported what they need, which takes half a second of processor time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from fusionkit.parallel import unique_id
from tests.hanging import HANGING
from tests.parallel import ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def forks():
    """The context of multiprocessing whose processes are forked. Each needs few threads: NumPy's pool would take a
    second to start eight times."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([ranks.__name__])
    with contextlib.chdir(ROOT), pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            patch.setenv(name, "1")
        forkserver.ensure_running()
    return context


class Ranks:
    """`world_size` processes that run `tests.parallel.ranks.<name>(communicator, **arguments)`.

    transport: "memory"; "tcp", each rank a host of its own; or "mixed", two ranks a host. meeting: a store's folder.
    """

    def __init__(
        self, forks, name: str, world_size: int, timeout: float, transport: str, meeting: str, **arguments: object
    ) -> None:
        meeting = unique_id().hex() if transport == "memory" else meeting
        if name == "many":
            arguments["transport"] = transport
        self.processes, self.pipes = [], []
        for rank in range(world_size):
            pipe, theirs = forks.Pipe()
            where = transport, meeting, rank, world_size, timeout
            self.processes.append(forks.Process(target=ranks.answer, args=(theirs, name, where, arguments)))
            self.processes[-1].start()
            self.pipes.append(pipe)
            theirs.close()
        for pipe in self.pipes:  # none joins, and waits for the others, before all are there
            pipe.recv()
        for pipe in self.pipes:
            pipe.send("begin")

    def results(self, seconds: float = HANGING) -> list[object]:
        """What each rank returned; the exception that it raised; or None for one that died."""
        return [self._result(pipe, seconds) for pipe in self.pipes]

    def _result(self, pipe, seconds: float) -> object:
        assert pipe.poll(seconds), f"no answer within {seconds} s"
        with contextlib.suppress(EOFError, ConnectionResetError):
            return pipe.recv()

    def kill(self, rank: int, started: Path | None = None) -> None:
        """started: the folder in which each rank makes a file when it is in its calls; waits for all of them."""
        while started is not None and len(os.listdir(started)) < len(self.processes):
            assert all(process.is_alive() for process in self.processes)
            time.sleep(0.02)
        self.processes[rank].kill()

    def end(self) -> None:
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()


@pytest.fixture
def start(forks, tmp_path):
    """Starts ranks and ends them with the test."""
    started = []

    def start_ranks(
        name: str, world_size: int, *, timeout: float = 30, transport: str = "memory", **arguments: object
    ) -> Ranks:
        meeting = tmp_path / str(len(started))
        meeting.mkdir()
        started.append(Ranks(forks, name, world_size, timeout, transport, str(meeting), **arguments))
        return started[-1]

    yield start_ranks
    for each in started:
        each.end()
