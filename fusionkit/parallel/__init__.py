"""Processes that compute together: the communicator, over shared memory within a host and TCP between hosts.

    from fusionkit.parallel import Communicator, unique_id

    communicator = Communicator(identifier, rank, world_size)   # identifier: rank 0's unique_id(), given to all
    total = communicator.all_reduce(gradient)

Its layers take the place of `paddle.distributed.fleet`'s: ColumnParallelLinear, RowParallelLinear,
ColumnSequenceParallelLinear, RowSequenceParallelLinear and VocabParallelEmbedding.

Importing this imports no framework and starts nothing; the layers import Paddle when they are first asked for.
"""

from typing import Any

from fusionkit.parallel.communicator import Communicator, group, unique_id
from fusionkit.parallel.sums import sum_in_order
from fusionkit.parallel.work import CommunicatorError, Work, waited_seconds

LAYERS = (
    "ColumnParallelLinear",
    "ColumnSequenceParallelLinear",
    "RowParallelLinear",
    "RowSequenceParallelLinear",
    "VocabParallelEmbedding",
)

__all__ = ["Communicator", "CommunicatorError", "Work", "group", "sum_in_order", "unique_id", "waited_seconds"]


def __getattr__(name: str) -> Any:
    if name not in LAYERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fusionkit.parallel import layers

    return getattr(layers, name)
