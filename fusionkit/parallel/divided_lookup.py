"""Looking up rows of a table whose rows are divided over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle

from fusionkit.errors import argument_error
from fusionkit.parallel import collectives
from fusionkit.parallel.parameters import share_of
from fusionkit.world_size import world_size_of


def divided_lookup(
    layer: str, ids: Any, own: slice, find: Callable[[Any], Any], dtype: Any, group: Any, reduce_scatter: bool
) -> Any:
    """Every rank's own rows, zeros for those of others, added up: the sum is exact, as all but one are zeros.

    Args:
        layer: who is named in errors.
        ids: [...], replicated.
        own: this rank's rows.
        find: numbers of own rows -> [..., hidden_size].
        dtype: of the result; the rows are rounded before they travel.
        reduce_scatter: leave each rank its part of the first axis; else the result is replicated.

    Raises:
        ValueError: the first axis does not divide.
    """
    rows = ids - own.start
    is_here = (rows >= 0) & (rows < own.stop - own.start)
    found = find(rows * is_here.astype(rows.dtype)).astype("float32")  # Paddle 3.3.1's where has 32 bits on the host
    found = paddle.where(is_here.unsqueeze(-1), found, paddle.zeros([1], "float32")).astype(dtype)
    if not reduce_scatter:
        return collectives.all_reduce(found, group)
    share_of(layer, "x's first axis", ids.shape[0], world_size_of(group))
    return collectives.reduce_scatter(found, group)


def check_ids(layer: str, ids: Any, num_embeddings: int) -> None:
    """Of an id outside all ranks would give zeros.

    Raises:
        ValueError: naming it.
    """
    outside = (ids < 0) | (ids >= num_embeddings)
    if bool(outside.any()):
        raise argument_error(layer, "x", f"in [0, {num_embeddings})", int(ids[outside][0]))
