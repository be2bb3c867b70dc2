"""What was measured of one subject: medians, the floor, and ratios between contestants."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from fusionkit_bench.contestants import COMPOSITION, KERNEL, OP, OP_AS_IT_COMES, PEAK, PRODUCT, STREAM, TUNED
from fusionkit_bench.subject import Subject
from pytest_benchmark.stats import Stats

from fusionkit.spec import Cost


@dataclass(frozen=True)
class Result:
    """One subject with warm or cold caches.

    Args:
        costs: direction -> what the spec says that a call costs at least.
        stats: (contestant, direction) -> seconds a call in each round, as pytest-benchmark keeps them.
    """

    subject: Subject
    costs: Mapping[str, Cost]
    cold: bool
    stats: Mapping[tuple[str, str], Stats]

    @property
    def state(self) -> str:
        return "cold" if self.cold else "warm"

    def median(self, contestant: str, direction: str) -> float:
        return float(self.stats[contestant, direction].median)

    def spread(self, contestant: str, direction: str) -> float:
        """Interquartile range over the median."""
        stats = self.stats[contestant, direction]
        return float(stats.iqr / stats.median)

    def ratio(self, contestant: str, other: str, direction: str) -> float:
        """How many times longer the contestant takes: the median over the rounds, each of which saw one machine."""
        seconds, others = (self.stats[name, direction].data for name in (contestant, other))
        if len(seconds) != len(others):  # a slow contestant runs in fewer rounds
            return self.median(contestant, direction) / self.median(other, direction)
        return float(statistics.median(a / b for a, b in zip(seconds, others, strict=True)))

    def fastest(self, kind: str, direction: str, tuned: bool = False) -> str | None:
        """Of the contestants whose name begins so, that with the least median."""
        names = [name for name, way in self.stats if way == direction and name.startswith(kind)]
        names = [name for name in names if name.endswith(TUNED) == tuned]
        return min(names, key=lambda name: self.median(name, direction), default=None)

    def ceiling(self, kind: str, direction: str) -> float:
        """Seconds at the ceiling: of the ways to move bytes, or to multiply, the best; 0 where none bounds the call."""
        name = self.fastest(kind, direction)
        return self.median(name, direction) if name else 0.0

    def bound_by(self, direction: str) -> str:
        return max(STREAM, PRODUCT, key=lambda kind: self.ceiling(kind, direction))

    def nearest_ceiling(self, direction: str) -> str:
        """The contestant whose time is the floor: a stream, or a library's product."""
        return str(self.fastest(self.bound_by(direction), direction))

    def rate(self, direction: str, contestant: str = KERNEL) -> tuple[float, str]:
        """GB/s of a call that memory bounds, GFLOP/s of another."""
        cost, seconds = self.costs[direction], self.median(contestant, direction)
        if self.bound_by(direction) == STREAM:
            return (cost.bytes_read + cost.bytes_written) / seconds / 1e9, "GB/s"
        return cost.flops / seconds / 1e9, "GFLOP/s"

    def share_of_ceiling(self, direction: str) -> float:
        return self.ratio(self.nearest_ceiling(direction), KERNEL, direction)

    def share_of_peak(self, direction: str) -> float | None:
        """Of what registers allow at their best; None where memory bounds the call in any case."""
        peaks = [stats.min for (name, way), stats in self.stats.items() if way == direction and name.startswith(PEAK)]
        return min(peaks) / self.median(KERNEL, direction) if peaks else None

    def times_faster(self, framework: str, direction: str, tuned: bool = False) -> float | None:
        """How many times longer the best of a framework's variants takes than the op; None where it was not run.

        Both in processes that keep freed memory (`tuned`), or both in processes as they come.
        """
        peer = self.fastest(framework, direction, tuned)
        return None if peer is None else self.ratio(peer, OP if tuned else OP_AS_IT_COMES, direction)

    def share_of_kernel(self, direction: str) -> float:
        return self.ratio(KERNEL, OP, direction)


PEERS = (COMPOSITION, "torch")
