"""Which part of an axis each rank has."""

from __future__ import annotations


def own_part(size: int, rank: int, world_size: int) -> slice:
    """This rank's of `size` entries, in the order of ranks; the first size % world_size ranks have one more."""
    each, more = divmod(size, world_size)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


def part_sizes(size: int, world_size: int) -> list[int]:
    """Entries of every rank; rank 0 has the most."""
    parts = [own_part(size, rank, world_size) for rank in range(world_size)]
    return [part.stop - part.start for part in parts]
