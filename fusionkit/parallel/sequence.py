"""The first axis, tokens, scattered over ranks that all have it, and gathered where all go on to compute alike."""

from __future__ import annotations

from typing import Any

from fusionkit.adapters.gradients import linear_map
from fusionkit.parallel.collectives import gathered
from fusionkit.parallel.parameters import share_of
from fusionkit.world_size import world_size_of


def scatter_rows(x: Any, group: Any) -> Any:
    """[rows, ...], replicated, -> [rows / world_size, ...], this rank's rows. Its gradient is gathered.

    Raises:
        ValueError: rows is not a multiple of world_size.
    """
    share_of("scatter_rows", "x's first axis", x.shape[0], world_size_of(group))
    return linear_map(x, _own, gathered, group)


def gather_rows(x: Any, group: Any) -> Any:
    """[rows, ...] -> [rows * world_size, ...], replicated. Its gradient is this rank's rows of what all ranks have.

    `collectives.all_gather` is for ranks that go on to compute different things: its gradient sums over them.
    """
    return linear_map(x, gathered, _own, group)


def _own(x: Any, group: Any) -> Any:
    rows = x.shape[0] // world_size_of(group)
    return x[group.rank * rows : (group.rank + 1) * rows].contiguous()
