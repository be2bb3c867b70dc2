"""Data parallelism: each process computes its share of a step's rows, and all make the same update.

`python -m paddle.distributed.launch --devices 0,1 SCRIPT` starts a process for each device.

Alone, a process is the first of one, and nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import paddle
from paddle.distributed import fleet
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

Item = TypeVar("Item")


def start() -> None:
    """Join the other processes; each has the device that the launcher gave it."""
    if size() > 1:
        strategy = fleet.DistributedStrategy()
        strategy.hybrid_configs = {"dp_degree": size(), "mp_degree": 1, "pp_degree": 1, "sharding_degree": 1}
        fleet.init(is_collective=True, strategy=strategy)


def size() -> int:
    return int(paddle.distributed.get_world_size())


def is_first() -> bool:
    """Whether this process speaks and writes for all."""
    return bool(paddle.distributed.get_rank() == 0)


def share(items: Sequence[Item]) -> list[Item]:
    """This process's part; it may be empty."""
    return list(items[paddle.distributed.get_rank() :: size()])


def totals(*values: float) -> list[float]:
    """Sums over all processes."""
    if size() == 1:
        return list(values)
    summed = paddle.to_tensor(np.array(values, dtype=np.float64))
    paddle.distributed.all_reduce(summed)
    return [float(value) for value in summed.numpy()]


def average_gradients(parameters: Iterable[paddle.Tensor]) -> None:
    """Every gradient becomes its mean over all processes; one that had no rows counts with zeros."""
    if size() == 1:
        return
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
    group = fleet.get_hybrid_communicate_group()
    fused_allreduce_gradients(parameters, group)
