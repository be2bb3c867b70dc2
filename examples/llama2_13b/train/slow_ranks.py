"""A rank that computes longer than the others is named: they wait for it in every step."""

from __future__ import annotations

import platform
import statistics
from collections import Counter
from collections.abc import Sequence

from examples.llama2_13b.parallel.mesh import Mesh

# From here on the others wait a third of their time.
FACTOR = 1.5
# Rows of different lengths make a rank slow for a step, and by chance seldom for so many in a row.
STEPS = 5


class SlowRanks:
    """Compares the times of a step. A rank is compared with those of its stage, which have the same work; a stage of
    one rank with all.

    Args:
        mesh: whose processes all call `look` after every step.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._in_a_row: Counter[int] = Counter()

    def look(self, seconds: float) -> list[str]:
        """A line for each rank that is slow for the fifth step in a row, the same on all processes.

        Args:
            seconds: that this process has computed, without waiting for others.
        """
        if self._mesh.world is None:
            return []
        times, stages = zip(*self._mesh.gathered((seconds, self._mesh.pipeline.stage)), strict=True)
        return [
            self._line(rank, factor) for rank, factor in enumerate(factors(times, stages)) if self._is_due(rank, factor)
        ]

    def _is_due(self, rank: int, factor: float) -> bool:
        """Once: a rank that stays slow has gone beyond."""
        self._in_a_row[rank] = self._in_a_row[rank] + 1 if factor >= FACTOR else 0
        return self._in_a_row[rank] == STEPS

    def _line(self, rank: int, factor: float) -> str:
        host = self._mesh.texts_of_all(platform.node())[rank]
        took = f"computed {factor:.1f} times as long as the median of its like in {STEPS} steps in a row"
        return f"rank {rank} on host {host} {took}; the others wait for it"


def factors(times: Sequence[float], stages: Sequence[float]) -> list[float]:
    """Each time relative to the median of its stage. Of an even number that is the lower one: of two, the faster."""
    of_stage = [[time for time, other in zip(times, stages, strict=True) if other == stage] for stage in stages]
    compared = [times if len(own) == 1 else own for own in of_stage]
    return [time / max(statistics.median_low(like), 1e-9) for time, like in zip(times, compared, strict=True)]
