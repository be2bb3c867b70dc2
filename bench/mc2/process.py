"""A rank's process and the handle by which the benchmark asks it; it dies with the benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

from fusionkit_bench.mc2.network import IN_NEW_NAMESPACE

from fusionkit.errors import FusionkitError

# One thread computes; no pool of NumPy's or of OpenMP beside it.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "KMP_BLOCKTIME": "0"}
MODULE = "fusionkit_bench.mc2.rank"


class RankError(FusionkitError, RuntimeError):
    """A rank failed, or its process ended."""


class RankProcess:
    """Starts a module on one core, in a network namespace of its own where wanted."""

    def __init__(self, rank: int, world_size: int, core: int, own_namespace: bool, module: str = MODULE) -> None:
        self.rank = rank
        self.connection, theirs = Pipe()
        self._log = os.memfd_create("rank")  # what it prints; nothing to remove
        words = [sys.executable, "-m", module, rank, world_size, core, os.getpid(), theirs.fileno()]
        self._process = subprocess.Popen(
            [*(IN_NEW_NAMESPACE if own_namespace else ()), *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=os.environ | ONE_THREAD,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is the parent's
        )
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: str, *arguments: Any) -> None:
        try:
            self.connection.send((request, arguments))
        except OSError:
            raise self.ended() from None

    def ended(self) -> RankError:
        """What its process left behind."""
        self._process.kill()
        status = self._process.wait()
        said = os.pread(self._log, 1 << 20, 0).decode(errors="replace").strip().splitlines()[-8:]
        return RankError("\n  ".join([f"rank {self.rank} ended with status {status}", *said]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()
        os.close(self._log)


def answers(processes: Sequence[RankProcess], progress: Callable[[], object] = lambda: None) -> list[Any]:
    """What each rank answers to its last request. `progress` is called for each step that rank 0 reports.

    Raises:
        RankError: the first failure, with the texts of the ranks that failed because of it.
    """
    open_ranks = {process.connection: process for process in processes}
    results: dict[int, Any] = {}
    failures: list[str] = []
    while open_ranks:
        ready = wait(list(open_ranks), timeout=5 if failures else None)
        if not ready:
            break
        for connection in ready:
            process = open_ranks[connection]  # type: ignore[index]
            try:
                kind, value = process.connection.recv()
            except (EOFError, OSError):
                kind, value = "failed", str(process.ended())
            if kind == "progress":
                progress()
                continue
            del open_ranks[connection]  # type: ignore[arg-type]
            if kind == "failed":
                failures.append(value)
            else:
                results[process.rank] = value
    if failures:
        raise RankError("bench mc2: " + "\n".join(failures))
    return [results[process.rank] for process in processes]
