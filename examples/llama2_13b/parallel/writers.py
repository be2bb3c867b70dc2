"""Ranks that write the files of one folder together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.parallel.ranks import Ranks
from fusionkit.parallel.groups import communicator_of


@dataclass(frozen=True)
class Writers:
    """The ranks of a grid; alone, a process is the only one.

    Args:
        groups: of the grid's axes, each of this rank and those that differ from it along the axis; None for one rank.
    """

    groups: tuple[Any, ...] = ()

    @property
    def is_first(self) -> bool:
        return all(Ranks(group).rank == 0 for group in self.groups)

    @property
    def size(self) -> int:
        return math.prod(Ranks(group).size for group in self.groups)

    @property
    def rank(self) -> int:
        found = 0
        for group in self.groups:
            found = found * Ranks(group).size + Ranks(group).rank
        return found

    def gather(self, values: Sequence[int]) -> NDArray[np.int64]:
        """[ranks, values] of all in the order of `rank`, on all, at least one each. Each waits here for the last."""
        found = np.array([values], np.int64)
        for group in reversed(self.groups):
            if group is not None:
                found = communicator_of(group).all_gather(found).reshape(-1, len(values))
        return found

    def together(self, work: Callable[[], object] | None, what: object) -> None:
        """Do this rank's part of the work, if it has one, and wait for the others.

        Args:
            what: cannot be written where the part of another fails.

        Raises:
            OSError: on all ranks where the part of one could not be written; its own is this rank's.
        """
        error: OSError | None = None
        try:
            if work is not None:
                work()
        except OSError as failure:
            error = failure
        if self.gather([error is not None]).any():
            raise error or OSError(f"{what}: another process could not write its part, and says why")
