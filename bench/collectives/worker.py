"""One process of a contestant: reads cases, times them with the others, and tells what it took.

python -m fusionkit_bench.collectives.worker KIND RANK WORLD_SIZE FOLDER [tcp]; by mpirun, rank 0 reads for all.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, NamedTuple

from fusionkit_bench.collectives.cases import Case
from fusionkit_bench.collectives.contestants import Fusionkit, Gloo, Mpi

KINDS: dict[str, Any] = {"fusionkit": Fusionkit, "gloo": Gloo, "mpi": Mpi}


class Times(NamedTuple):
    """Of one call on this rank; `processor_seconds` of all its threads."""

    seconds: float
    processor_seconds: float


def measured(contestant: Any, case: Case) -> Times | None:
    """None when the contestant does not have the call."""
    try:
        call = contestant.call(case)
    except NotImplementedError:
        return None
    for _ in range(2):
        call()
    contestant.barrier()
    iterations = case.iterations()
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(iterations):
        call()
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - busy
    messages = iterations * (2 if case.op == "send_recv" else 1)
    return Times(seconds / messages, processor_seconds / messages)


def main() -> None:
    kind, rank, world_size, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    contestant = KINDS[kind](rank, world_size, folder, "tcp" in sys.argv[5:])
    world = getattr(contestant, "world", None)
    answer(None, world)
    while line := command(world):
        answer(measured(contestant, Case(*json.loads(line))), world)


def command(world: Any) -> str:
    """The next line for this rank. Ranks of MPI sleep until it comes: a blocking call would burn a core meanwhile."""
    if world is None or world.rank == 0:
        line = sys.stdin.readline()
        if world is not None:
            for peer in range(1, world.size):
                world.send(line, peer, tag=7)
        return line
    while not world.Iprobe(source=0, tag=7):
        time.sleep(0.001)
    return str(world.recv(source=0, tag=7))


def answer(times: Times | None, world: Any) -> None:
    """The slowest rank's, where one rank answers for all."""
    if world is not None:
        every = world.gather(times, root=0)
        if world.rank != 0:
            return
        times = None if None in every else max(every)
    print(json.dumps({"times": times}), flush=True)


if __name__ == "__main__":
    main()
