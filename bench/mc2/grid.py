"""100 shapes, few rows among them: the op, which chooses its own path, is never slower than its serial path."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from fusionkit_bench.mc2 import protocol, statistics
from fusionkit_bench.mc2.cases import ALL_REDUCE, OPS, Case, directions_of
from fusionkit_bench.mc2.measurement import CONTROL, FUSED

from fusionkit.parallel import Communicator

AT_LEAST = 0.99
BURST_S = 0.02  # a timing repeats its call for so long
ROWS = (1, 2, 3, 4, 8, 16, 33, 64, 256, 1024)  # of each rank; of all together for matmul_all_reduce
SIZES = ((512, 512), (1024, 2048), (2048, 1024), (1000, 777))  # K, N


@dataclass(frozen=True)
class RankRatio:
    """Seconds a call in each round, and the reasons in the ledger for what ran."""

    seconds: Mapping[str, Sequence[float]]
    ran: Mapping[tuple[str, str, str], int]


@dataclass(frozen=True)
class Judged:
    """One shape: how many times longer the serial path takes, and what the op chose."""

    case: Case
    ratio: statistics.Estimate
    reasons: tuple[str, ...]

    @property
    def path(self) -> str:
        """What the ledger has beside the first choice. A backward that overlaps has no entry of its own."""
        return "; ".join(reason for reason in self.reasons if not reason.endswith(": chosen")) or "overlapped"

    @property
    def is_below(self) -> bool:
        return self.ratio.median < AT_LEAST

    @property
    def is_surely_below(self) -> bool:
        """With the whole interval: not by chance."""
        return self.ratio.high < AT_LEAST


def cases(world_size: int, dtype: str, number: int = 100) -> list[Case]:
    """So many of all ops, directions and shapes, drawn with a fixed seed, in their order."""
    found = [
        Case(op, direction, world_size, rows if op == ALL_REDUCE else rows * world_size, k, n, dtype)
        for op in OPS
        for direction in directions_of(op)
        for (k, n), rows in itertools.product(SIZES, ROWS)
    ]
    drawn = np.random.default_rng(0).permutation(len(found))[:number]
    return [found[index] for index in sorted(drawn)]


def run(calls: Mapping[str, Callable[[], object]], communicator: Communicator, rounds: int) -> RankRatio:
    """On one rank. All ranks repeat a call equally often, by the slowest rank's first time."""
    for call in calls.values():
        call()
    communicator.barrier()
    start = time.perf_counter()
    calls[FUSED]()
    first = communicator.all_reduce(np.array([time.perf_counter() - start]), "max")
    number = max(1, round(BURST_S / float(first[0])))
    watch = protocol.Watch()
    repeated = {name: repeat(call, number) for name, call in calls.items()}
    seconds = protocol.run(repeated, communicator.barrier, rounds, {FUSED: watch})
    return RankRatio({name: [each / number for each in found] for name, found in seconds.items()}, watch.ran)


def repeat(call: Callable[[], object], number: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(number):
            call()

    return run


def judge(case: Case, ranks: Sequence[RankRatio]) -> Judged:
    slowest = {name: np.max([rank.seconds[name] for rank in ranks], axis=0) for name in (FUSED, CONTROL)}
    reasons = sorted({f"{backend}: {reason}" for rank in ranks for _, backend, reason in rank.ran})
    return Judged(case, statistics.estimate(slowest[CONTROL] / slowest[FUSED]), tuple(reasons))
