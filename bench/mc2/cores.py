"""A core for each rank: one hardware thread of each physical core that this process may use."""

from __future__ import annotations

from fusionkit import cores


def physical_cores() -> list[int]:
    """The first allowed hardware thread of each physical core; no more of them than a quota lets run at once."""
    return cores.physical_cores()[: cores.for_arithmetic().number]


def core_of_each_rank(world_size: int, cores: list[int]) -> list[int]:
    """One of its own for each rank while there are enough; beyond that they share, the first again."""
    return [cores[rank % len(cores)] for rank in range(world_size)]
