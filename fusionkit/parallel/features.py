"""The last axis split over ranks, and put together again."""

from __future__ import annotations

from typing import Any

from paddle.autograd import PyLayer

from fusionkit.ops.shards import world_size_of
from fusionkit.parallel.collectives import gathered
from fusionkit.parallel.parameters import share_of


def gather_features(x: Any, group: Any) -> Any:
    """[..., features] -> [..., features * world_size], by rank. Its gradient is this rank's part of what all have."""
    return _Gather.apply(x, group)


def split_features(x: Any, group: Any) -> Any:
    """[..., features] -> [..., features / world_size], this rank's part. Its gradient is gathered.

    Raises:
        ValueError: features is not a multiple of world_size.
    """
    share_of("split_features", "x's last axis", x.shape[-1], world_size_of(group))
    return _Split.apply(x, group)


class _Gather(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, group: Any) -> Any:
        ctx.group = group
        return _joined(x, group)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        return _part(dy, ctx.group)


class _Split(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, group: Any) -> Any:
        ctx.group = group
        return _part(x, group)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        return _joined(dy, ctx.group)


def _part(x: Any, group: Any) -> Any:
    size = x.shape[-1] // world_size_of(group)
    return x[..., group.rank * size : (group.rank + 1) * size].contiguous()


def _joined(x: Any, group: Any) -> Any:
    blocks = gathered(x.unsqueeze(0), group)  # [world_size, ..., features]
    axes = [*range(1, blocks.ndim - 1), 0, blocks.ndim - 1]
    return blocks.transpose(axes).reshape([*x.shape[:-1], -1])
