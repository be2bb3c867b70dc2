"""What was measured of one subject: medians, the floor, and ratios between contestants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pytest_benchmark.stats import Stats

from fusionkit.benchmark.contestants import COMPOSITION, KERNEL, OP, PRODUCT, STREAM, TUNED
from fusionkit.benchmark.subject import Subject
from fusionkit.spec import Cost


@dataclass(frozen=True)
class Result:
    """One subject with warm or cold caches.

    Args:
        dims: the sizes that the spec's cost reads.
        stats: (contestant, direction) -> seconds a call in each round, as pytest-benchmark keeps them.
    """

    subject: Subject
    dims: Mapping[str, Any]
    cold: bool
    stats: Mapping[tuple[str, str], Stats]

    @cached_property
    def costs(self) -> dict[str, Cost]:
        return {direction: self.subject.cost(self.dims, direction) for direction in self.subject.directions}

    @property
    def state(self) -> str:
        return "cold" if self.cold else "warm"

    def median(self, contestant: str, direction: str) -> float:
        return float(self.stats[contestant, direction].median)

    def spread(self, contestant: str, direction: str) -> float:
        """Interquartile range over the median."""
        stats = self.stats[contestant, direction]
        return float(stats.iqr / stats.median)

    def ceiling(self, kind: str, direction: str) -> float:
        """Seconds at the ceiling: of the ways to move bytes the better one; 0 where it cannot bound the call."""
        medians = [self.median(*key) for key in self.stats if key[0].startswith(kind) and key[1] == direction]
        return min(medians, default=0.0)

    def bound_by(self, direction: str) -> str:
        return max(STREAM, PRODUCT, key=lambda kind: self.ceiling(kind, direction))

    def floor(self, direction: str) -> float:
        return self.ceiling(self.bound_by(direction), direction)

    def rate(self, direction: str, contestant: str = KERNEL) -> tuple[float, str]:
        """GB/s of a call that memory bounds, GFLOP/s of another."""
        cost, seconds = self.costs[direction], self.median(contestant, direction)
        if self.bound_by(direction) == STREAM:
            return (cost.bytes_read + cost.bytes_written) / seconds / 1e9, "GB/s"
        return cost.flops / seconds / 1e9, "GFLOP/s"

    def share_of_ceiling(self, direction: str) -> float:
        return self.floor(direction) / self.median(KERNEL, direction)

    def peer(self, framework: str, direction: str, tuned: bool = False) -> float | None:
        """The best of a framework's variants; None where it was not measured."""
        names = {name for name, way in self.stats if way == direction and name.startswith(framework)}
        medians = [self.median(name, direction) for name in names if name.endswith(TUNED) == tuned]
        return min(medians, default=None)

    def times_faster(self, framework: str, direction: str, tuned: bool = False) -> float | None:
        """How many times longer the peer takes than the public op."""
        peer = self.peer(framework, direction, tuned)
        return None if peer is None else peer / self.median(OP, direction)

    def share_of_kernel(self, direction: str) -> float:
        return self.median(KERNEL, direction) / self.median(OP, direction)


PEERS = (COMPOSITION, "torch")
