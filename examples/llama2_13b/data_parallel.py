"""Several processes: copies of the model, each on one or more of them, compute their shares of a step's rows.

`python -m paddle.distributed.launch --devices 0,1 SCRIPT` starts a process for each device. A copy on several processes
is divided by `tensor_parallel.py`; neighbours in the order of ranks share one.

Alone, a process is the first of one, and nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import paddle
from paddle.distributed import fleet
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

from examples.llama2_13b.tensor_parallel import ALONE, TensorParallel

Item = TypeVar("Item")


def start(tensor_parallel_degree: int = 1, sequence_parallel: bool = True) -> TensorParallel:
    """Join the other processes, each with the device that the launcher gave it; how a copy of the model is divided.

    Raises:
        ValueError: the processes do not make whole copies.
    """
    if processes() % tensor_parallel_degree:
        raise ValueError(
            f"sft: --tensor_parallel_degree must be a divisor of the number of processes {processes()}, got "
            f"{tensor_parallel_degree}. Start more with python -m paddle.distributed.launch"
        )
    if processes() == 1:
        return ALONE
    copies = processes() // tensor_parallel_degree
    strategy = fleet.DistributedStrategy()
    axes = {"dp_degree": copies, "mp_degree": tensor_parallel_degree, "pp_degree": 1, "sharding_degree": 1}
    strategy.hybrid_configs = axes
    fleet.init(is_collective=True, strategy=strategy)
    if tensor_parallel_degree == 1:
        return ALONE
    return TensorParallel(_topology().get_model_parallel_group(), sequence_parallel)


def processes() -> int:
    return int(paddle.distributed.get_world_size())


def size() -> int:
    """Copies of the model."""
    return 1 if processes() == 1 else int(_topology().get_data_parallel_world_size())


def rank() -> int:
    """Which copy this process has, or has a part of."""
    return 0 if processes() == 1 else int(_topology().get_data_parallel_rank())


def is_first() -> bool:
    """Whether this process speaks and writes for all."""
    return bool(paddle.distributed.get_rank() == 0)


def share(items: Sequence[Item]) -> list[Item]:
    """This copy's part; it may be empty."""
    return list(items[rank() :: size()])


def totals(*values: float) -> list[float]:
    """Sums over the copies."""
    return list(values) if size() == 1 else _summed(values, _topology().get_data_parallel_group())


def any_process(value: bool) -> bool:
    """Whether it holds for one of all processes; all wait here for the last."""
    return value if processes() == 1 else _summed([value], None)[0] > 0


def average_gradients(parameters: Iterable[paddle.Tensor]) -> None:
    """Every gradient becomes its mean over the copies; one that had no rows counts with zeros."""
    if size() == 1:
        return
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
    fused_allreduce_gradients(parameters, _topology())


def _summed(values: Sequence[float], group: Any) -> list[float]:
    summed = paddle.to_tensor(np.array(values, dtype=np.float64))
    paddle.distributed.all_reduce(summed, group=group)
    return [float(value) for value in summed.numpy()]


def _topology() -> Any:
    return fleet.get_hybrid_communicate_group()
