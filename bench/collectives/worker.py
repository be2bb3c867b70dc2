"""One process of a contestant: reads cases, times them with the others, and tells what it took.

python -m fusionkit_bench.collectives.worker KIND RANK WORLD_SIZE FOLDER [tcp]; by mpirun, rank 0 reads for all.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from fusionkit_bench.collectives.cases import Case
from fusionkit_bench.collectives.contestants import Fusionkit, Gloo, Mpi

KINDS: dict[str, Any] = {"fusionkit": Fusionkit, "gloo": Gloo, "mpi": Mpi}


def measured(contestant: Any, case: Case) -> float | None:
    """Seconds of one call on this rank; None when the contestant does not have it."""
    try:
        call = contestant.call(case)
    except NotImplementedError:
        return None
    for _ in range(2):
        call()
    contestant.barrier()
    start, iterations = time.perf_counter(), case.iterations()
    for _ in range(iterations):
        call()
    messages = 2 if case.op == "send_recv" else 1
    return (time.perf_counter() - start) / iterations / messages


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


def answer(seconds: float | None, world: Any) -> None:
    """The slowest rank's time, where one rank answers for all."""
    if world is not None:
        times = world.gather(seconds, root=0)
        if world.rank != 0:
            return
        seconds = None if None in times else max(times)
    print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
