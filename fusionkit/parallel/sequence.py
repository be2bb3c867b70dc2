"""The first axis, tokens, scattered over ranks that all have it, and gathered where all go on to compute alike."""

from __future__ import annotations

from typing import Any

from paddle.autograd import PyLayer

from fusionkit.ops.shards import world_size_of
from fusionkit.parallel.collectives import gathered
from fusionkit.parallel.parameters import share_of


def scatter_rows(x: Any, group: Any) -> Any:
    """[rows, ...], replicated, -> [rows / world_size, ...], this rank's rows. Its gradient is gathered.

    Raises:
        ValueError: rows is not a multiple of world_size.
    """
    share_of("scatter_rows", "x's first axis", x.shape[0], world_size_of(group))
    return _Scatter.apply(x, group)


def gather_rows(x: Any, group: Any) -> Any:
    """[rows, ...] -> [rows * world_size, ...], replicated. Its gradient is this rank's rows of what all ranks have.

    `collectives.all_gather` is for ranks that go on to compute different things: its gradient sums over them.
    """
    return _Gather.apply(x, group)


class _Scatter(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, group: Any) -> Any:
        ctx.group = group
        return _own(x, group)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        return gathered(dy, ctx.group)


class _Gather(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, group: Any) -> Any:
        ctx.group = group
        return gathered(x, group)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        return _own(dy, ctx.group)


def _own(x: Any, group: Any) -> Any:
    rows = x.shape[0] // world_size_of(group)
    return x[group.rank * rows : (group.rank + 1) * rows].contiguous()
