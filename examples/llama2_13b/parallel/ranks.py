"""A group of ranks; without one, this process is the only rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ranks:
    """Whoever divides something over the ranks of a group.

    Args:
        group: a Paddle group or a `fusionkit.parallel.Communicator`; None is one rank.
    """

    group: Any = None

    @property
    def size(self) -> int:
        return 1 if self.group is None else int(self.group.world_size)

    @property
    def rank(self) -> int:
        return 0 if self.group is None else int(self.group.rank)
