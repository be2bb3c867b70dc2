"""What the process of one rank runs: it answers the benchmark's requests until the benchmark ends.

python -m fusionkit_bench.mc2.rank RANK WORLD_SIZE CORE PARENT_PID CONNECTION
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from fusionkit_bench.mc2 import contestants, grid, protocol, traffic
from fusionkit_bench.mc2.cases import Case
from fusionkit_bench.mc2.measurement import COLLECTIVE, CONTROL, FUSED, PRODUCT, RankRounds
from fusionkit_bench.mc2.timeline import Recorded

PR_SET_PDEATHSIG = 1  # prctl(2)
PORT = 29500  # of the store, in a namespace that nobody else uses
JOIN_S = 60.0


class Rank:
    """One rank. Each public method is a request, whose result is the answer."""

    def __init__(self, rank: int, world_size: int, report: Callable[[], None]) -> None:
        self._rank, self._world_size, self._report = rank, world_size, report

    def join(self, backend: str, meeting: bytes | tuple[str, str]) -> None:
        """meeting: an identifier for the ranks of one host, or (rank 0's address, this rank's) for TCP."""
        from fusionkit import keep_freed_memory
        from fusionkit.parallel import Communicator

        keep_freed_memory()
        self._device = device_of(backend)
        if isinstance(meeting, bytes):
            self._communicator = Communicator(meeting, self._rank, self._world_size, timeout=JOIN_S)
            return
        master, own = meeting
        core: Any = importlib.import_module("paddle.base.core")
        self._store = core.TCPStore(master, PORT, self._rank == 0, self._world_size, int(JOIN_S))
        self._communicator = Communicator.from_store(
            self._store, self._rank, self._world_size, name="bench mc2", address=own, timeout=JOIN_S
        )

    def probe(self, case: Case) -> tuple[float, float]:
        """Seconds of the product and of the collective alone, least of three: for choosing sizes."""
        arrays = contestants.arrays_of(case, self._rank)
        calls = {
            PRODUCT: contestants.fastest(contestants.products(case, arrays, self._device), self._communicator)[1],
            COLLECTIVE: contestants.collective_of(case, arrays, self._communicator),
        }
        seconds = protocol.run(calls, self._communicator.barrier, 3, {})
        return min(seconds[PRODUCT]), min(seconds[COLLECTIVE])

    def measure(self, case: Case, rounds: int) -> RankRounds:
        watch = protocol.Watch()
        with watch.of_preparation():
            calls, baseline = contestants.contestants(case, self._communicator, self._device)
        seconds = protocol.run(calls, self._communicator.barrier, rounds, {FUSED: watch}, self._report)
        num_chunks = self._device.num_chunks(case, self._communicator)
        return RankRounds(seconds, watch.stolen, watch.ran, num_chunks, baseline)

    def forget(self) -> None:
        """The rate of the link has changed."""
        self._device.forget(self._communicator)

    def record(self, case: Case) -> Recorded:
        """One fused call, in seconds of the clock that all processes share."""
        arrays = contestants.arrays_of(case, self._rank)
        call = contestants.fused_call(case, arrays, self._communicator)
        for _ in range(2):
            self._communicator.barrier()
            call()
        self._communicator.barrier()
        with traffic.sampled() as samples, self._device.record() as events:
            call()
        return Recorded([(each.lane, each.label, each.begin_s, each.end_s) for each in events], samples)

    def grid(self, case: Case, rounds: int) -> grid.RankRatio:
        arrays = contestants.arrays_of(case, self._rank)
        fused = contestants.fused_call(case, arrays, self._communicator)
        pair = {FUSED: fused, CONTROL: contestants.serially(fused, self._device)}
        return grid.run(pair, self._communicator, rounds)


def device_of(backend: str) -> Any:
    """The backend's part: `MC2` of its benchmark module names it. See docs/mc2.md."""
    from fusionkit_bench.contestants import device_of

    module = getattr(device_of(backend), "MC2", None)
    if module is None:
        raise ValueError(f"bench mc2: {backend} has no overlapped products to measure")
    return importlib.import_module(module)


def die_with(parent: int) -> None:
    """The kernel kills this process when the parent ends, however it does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def serve(connection: Any, rank: Rank) -> None:
    while True:
        try:
            request, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("result", getattr(rank, request)(*arguments)))
        except Exception as error:  # the parent raises it
            traceback.print_exc()
            connection.send(("failed", f"rank {sys.argv[1]}: {type(error).__name__}: {error}"))


def main() -> None:
    number, world_size, core, parent, descriptor = map(int, sys.argv[1:])
    die_with(parent)
    os.sched_setaffinity(0, {core})
    connection: Any = Connection(descriptor)

    def report() -> None:
        if number == 0:
            connection.send(("progress", None))
        time.sleep(0.005)  # the parent draws its bar, perhaps on a rank's core

    serve(connection, Rank(number, world_size, report))


if __name__ == "__main__":
    main()
