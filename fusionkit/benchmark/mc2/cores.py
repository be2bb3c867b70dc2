"""A core for each rank: one hardware thread of each physical core that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def physical_cores() -> list[int]:
    """The first allowed hardware thread of each physical core."""
    chosen: dict[str, int] = {}
    for thread in sorted(os.sched_getaffinity(0)):
        path = Path(SIBLINGS.format(thread))
        siblings = path.read_text().strip() if path.exists() else str(thread)
        chosen.setdefault(siblings, thread)
    return list(chosen.values())


def core_of_each_rank(world_size: int, cores: list[int]) -> list[int]:
    """One of its own for each rank while there are enough; beyond that they share, the first again."""
    return [cores[rank % len(cores)] for rank in range(world_size)]
