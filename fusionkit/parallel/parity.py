"""Parity of the collective ops: the ranks of a case as threads of this process, each with a communicator of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fusionkit.parallel.communicator import Communicator, unique_id

TIMEOUT = 60.0  # seconds; a rank that raises leaves, and the others fail at once


def run_ranks(world_size: int, run: Callable[[int, Communicator], Any]) -> list[Any]:
    """`run(rank, communicator)` on each rank at once; the results in the order of ranks.

    Raises:
        Exception: what a rank raised; of several, one that is not only told of another rank's failure.
    """
    identifier = unique_id()

    def one(rank: int) -> Any:
        if "paddle" in sys.modules:  # its dynamic mode is a thread's own, and new threads begin without it
            sys.modules["paddle"].disable_static()
        with Communicator(identifier, rank, world_size, timeout=TIMEOUT) as communicator:
            return run(rank, communicator)

    with ThreadPoolExecutor(world_size) as threads:
        futures = [threads.submit(one, rank) for rank in range(world_size)]
        errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise min(errors, key=lambda error: "another rank failed" in str(error) or "has left" in str(error))
    return [future.result() for future in futures]
