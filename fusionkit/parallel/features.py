"""The last axis split over ranks, and put together again."""

from __future__ import annotations

from typing import Any

import paddle

from fusionkit.adapters.gradients import linear_map
from fusionkit.parallel.collectives import gathered
from fusionkit.parallel.parameters import share_of
from fusionkit.parallel.parts import own_part, part_sizes
from fusionkit.world_size import world_size_of


def gather_features(x: Any, features: int, group: Any) -> Any:
    """[..., own_part of features] -> [..., features]. Its gradient is this rank's part of what all have."""
    return linear_map(x, _joined, _part, features, group)


def split_features(x: Any, group: Any) -> Any:
    """[..., features] -> [..., features / world_size], this rank's part. Its gradient is gathered.

    Raises:
        ValueError: features is not a multiple of world_size.
    """
    share_of("split_features", "x's last axis", x.shape[-1], world_size_of(group))
    return linear_map(x, _part, _joined, x.shape[-1], group)


def _part(x: Any, features: int, group: Any) -> Any:
    return x[..., own_part(features, group.rank, world_size_of(group))].contiguous()


def _joined(x: Any, features: int, group: Any) -> Any:
    sizes = part_sizes(features, world_size_of(group))
    if missing := sizes[0] - x.shape[-1]:  # the collective takes the same from all
        x = paddle.concat([x, paddle.zeros([*x.shape[:-1], missing], x.dtype)], axis=-1)
    blocks = gathered(x.unsqueeze(0), group)  # [world_size, ..., the most features of a rank]
    return paddle.concat([blocks[rank, ..., :size] for rank, size in enumerate(sizes)], axis=-1)
