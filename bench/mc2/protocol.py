"""Interleaved rounds on one rank: a barrier, then one contestant, on all ranks at the same time."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from fusionkit_bench.mc2 import threads

import fusionkit

Call = Callable[[], object]
Entry = tuple[str, str, str]


class Watch:
    """What is seen of one contestant: the ledger, and the processor time of the threads that do not compute."""

    def __init__(self) -> None:
        self.stolen: list[float] = []
        self.ran: dict[Entry, int] = {}

    @contextmanager
    def of_preparation(self) -> Iterator[None]:
        """What a backward's forward chose is how the backward is known; whether the forward overlapped is not."""
        self._ledger = _counts()
        yield
        self._count(lambda reason: not reason.startswith("serial"))

    def begin(self) -> None:
        self._ledger = _counts()
        self._cpu = threads.cpu_seconds_of_others()

    def end(self) -> None:
        self.stolen.append(threads.spent(self._cpu, threads.cpu_seconds_of_others()))
        self._count(lambda reason: True)

    def _count(self, counts: Callable[[str], bool]) -> None:
        for entry, count in _counts().items():
            more = count - self._ledger.get(entry, 0)
            if more and counts(entry[2]):
                self.ran[entry] = self.ran.get(entry, 0) + more


def _counts() -> dict[Entry, int]:
    """Calls, and which way they went."""
    return {**fusionkit.ledger(), **fusionkit.ledger().ways()}


def run(
    calls: Mapping[str, Call],
    barrier: Call,
    rounds: int,
    watches: Mapping[str, Watch],
    after_round: Call = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round. The order begins with another contestant in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():  # lets lazy work happen
        barrier()
        call()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for name in shuffled(list(calls), number):
                seconds[name].append(timed(calls[name], barrier, watches.get(name)))
            after_round()
    finally:
        gc.enable()
    return seconds


def timed(call: Call, barrier: Call, watch: Watch | None = None) -> float:
    """Seconds of one call that all ranks begin together. The watch looks outside of them."""
    if watch is not None:
        watch.begin()
    barrier()
    start = time.perf_counter()
    result = call()
    elapsed_s = time.perf_counter() - start
    if watch is not None:
        watch.end()
    del result
    return elapsed_s


def shuffled(names: Sequence[str], number: int) -> list[str]:
    """Another order in each round, the same on all ranks, so that none always follows the same other."""
    return random.Random(number).sample(names, len(names))
