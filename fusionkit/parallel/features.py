"""The last axis split over ranks, and put together again."""

from __future__ import annotations

from typing import Any

from fusionkit.adapters.gradients import linear_map
from fusionkit.parallel.collectives import gathered
from fusionkit.parallel.parameters import share_of
from fusionkit.world_size import world_size_of


def gather_features(x: Any, group: Any) -> Any:
    """[..., features] -> [..., features * world_size], by rank. Its gradient is this rank's part of what all have."""
    return linear_map(x, _joined, _part, group)


def split_features(x: Any, group: Any) -> Any:
    """[..., features] -> [..., features / world_size], this rank's part. Its gradient is gathered.

    Raises:
        ValueError: features is not a multiple of world_size.
    """
    share_of("split_features", "x's last axis", x.shape[-1], world_size_of(group))
    return linear_map(x, _part, _joined, group)


def _part(x: Any, group: Any) -> Any:
    size = x.shape[-1] // world_size_of(group)
    return x[..., group.rank * size : (group.rank + 1) * size].contiguous()


def _joined(x: Any, group: Any) -> Any:
    blocks = gathered(x.unsqueeze(0), group)  # [world_size, ..., features]
    axes = [*range(1, blocks.ndim - 1), 0, blocks.ndim - 1]
    return blocks.transpose(axes).reshape([*x.shape[:-1], -1])
