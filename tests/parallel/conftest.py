"""Ranks as processes: each runs one function of tests/parallel/ranks.py and sends back what it returns or raises."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionkit.parallel import unique_id
from tests.hanging import HANGING
from tests.parallel.ranks import begin_together

ROOT = Path(__file__).parents[2]


class Ranks:
    """`world_size` processes that run `tests.parallel.ranks.<name>(communicator, **arguments)`.

    transport: "memory"; "tcp", each rank a host of its own; or "mixed", two ranks a host. meeting: a store's folder.
    """

    def __init__(
        self, name: str, world_size: int, timeout: float, transport: str, meeting: str, **arguments: object
    ) -> None:
        meeting = unique_id().hex() if transport == "memory" else meeting
        # Each rank needs few threads: NumPy's pool would take a second to start eight times.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if name == "many":
            arguments["transport"] = transport
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.parallel.ranks", transport, meeting, str(rank), str(world_size)]
                + [str(timeout), name, json.dumps(arguments)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for rank in range(world_size)
        ]
        begin_together(self.processes)

    def results(self, seconds: float = HANGING) -> list[object]:
        """What each rank returned; the exception that it raised; or None for one that died."""
        outputs = [process.communicate(timeout=seconds)[0] for process in self.processes]
        return [pickle.loads(output) if output else None for output in outputs]

    def kill(self, rank: int, started: Path | None = None) -> None:
        """started: the folder in which each rank makes a file when it is in its calls; waits for all of them."""
        while started is not None and len(os.listdir(started)) < len(self.processes):
            assert all(process.poll() is None for process in self.processes)
            time.sleep(0.02)
        self.processes[rank].send_signal(signal.SIGKILL)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture
def start(tmp_path):
    """Starts ranks and ends them with the test."""
    started = []

    def start_ranks(
        name: str, world_size: int, *, timeout: float = 30, transport: str = "memory", **arguments: object
    ) -> Ranks:
        meeting = tmp_path / str(len(started))
        meeting.mkdir()
        started.append(Ranks(name, world_size, timeout, transport, str(meeting), **arguments))
        return started[-1]

    yield start_ranks
    for ranks in started:
        ranks.end()
