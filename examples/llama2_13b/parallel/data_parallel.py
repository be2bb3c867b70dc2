"""Several processes: copies of the model, each on one or more of them, compute their shares of a step's rows.

`python -m paddle.distributed.launch --devices 0,1 --log_dir LOGS SCRIPT` starts a process for each device. A copy on
several processes is divided by `tensor_parallel.py`; neighbours in the order of ranks share one.

Alone, a process is the first of one, and nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import paddle
from paddle.distributed import fleet

from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel
from fusionkit.parallel import Communicator, collectives
from fusionkit.parallel.groups import communicator_of

Item = TypeVar("Item")
# The others wait while one writes: 13B's checkpoint is 156 GB. A process that ended is noticed at once all the same.
SAVING_SECONDS = 3600.0


@dataclass(frozen=True)
class Axes:
    """This process's groups: those that have the same part of the other copies, those that share its copy, and all.

    One of a single process is None.
    """

    data: Any
    tensor: Any
    world: Any


_axes: Axes | None = None  # of a process that is not alone


def start(tensor_parallel_degree: int = 1, sequence_parallel: bool = True) -> TensorParallel:
    """Join the other processes, each with the device that the launcher gave it; how a copy of the model is divided.

    Raises:
        ValueError: the processes do not make whole copies.
    """
    global _axes
    if processes() % tensor_parallel_degree:
        raise ValueError(
            f"sft: --tensor_parallel_degree must be a divisor of the number of processes {processes()}, got "
            f"{tensor_parallel_degree}. Start more: "
            "python -m paddle.distributed.launch --nproc_per_node N --log_dir LOGS"
        )
    if processes() == 1:
        return ALONE
    _axes = (_on_host if paddle.get_device() == "cpu" else _on_devices)(tensor_parallel_degree)
    return ALONE if _axes.tensor is None else TensorParallel(_axes.tensor, sequence_parallel)


def _on_devices(tensor_parallel_degree: int) -> Axes:
    """fleet's topology."""
    copies = processes() // tensor_parallel_degree
    strategy = fleet.DistributedStrategy()
    axes = {"dp_degree": copies, "mp_degree": tensor_parallel_degree, "pp_degree": 1, "sharding_degree": 1}
    strategy.hybrid_configs = axes
    fleet.init(is_collective=True, strategy=strategy)
    made = fleet.get_hybrid_communicate_group()
    data = made.get_data_parallel_group() if copies > 1 else None
    tensor = made.get_model_parallel_group() if tensor_parallel_degree > 1 else None
    return Axes(data, tensor, paddle.distributed.get_group())


def _on_host(tensor_parallel_degree: int) -> Axes:
    """The same axes without fleet: while it makes its groups, Paddle 3.3.1's gloo failed in 1 of 25 starts of two
    processes, and in most of four."""
    store = paddle.base.core.create_or_get_global_tcp_store()
    rank = paddle.distributed.get_rank()
    copy, part = divmod(rank, tensor_parallel_degree)

    def joined(name: str, rank: int, size: int) -> Communicator | None:
        if size == 1:
            return None
        return Communicator.from_store(store, rank, size, name=f"sft/{name}", timeout=SAVING_SECONDS)

    return Axes(
        joined(f"data {part}", copy, processes() // tensor_parallel_degree),
        joined(f"tensor {copy}", part, tensor_parallel_degree),
        joined("world", rank, processes()),
    )


def processes() -> int:
    return int(paddle.distributed.get_world_size())


def size() -> int:
    """Copies of the model."""
    return 1 if _axes is None or _axes.data is None else int(_axes.data.world_size)


def rank() -> int:
    """Which copy this process has, or has a part of."""
    return 0 if _axes is None or _axes.data is None else int(_axes.data.rank)


def is_first() -> bool:
    """Whether this process speaks and writes for all."""
    return bool(paddle.distributed.get_rank() == 0)


def share(items: Sequence[Item]) -> list[Item]:
    """This copy's part; it may be empty."""
    return list(items[rank() :: size()])


def totals(*values: float) -> list[float]:
    """Sums over the copies."""
    return list(values) if _axes is None or _axes.data is None else _summed(values, _axes.data)


def any_process(value: bool) -> bool:
    """Whether it holds for one of all processes; all wait here for the last."""
    return value if _axes is None else _summed([value], _axes.world)[0] > 0


def average_gradients(parameters: Iterable[paddle.Tensor]) -> None:
    """Every gradient becomes its mean over the copies; one that had no rows counts with zeros."""
    if _axes is None or _axes.data is None:
        return
    for parameter in parameters:
        gradient = paddle.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = collectives.all_reduced(gradient, _axes.data).scale_(1 / size())


def _summed(values: Sequence[float], group: Any) -> list[float]:
    summed = communicator_of(group).all_reduce(np.array(values, dtype=np.float64))
    return [float(value) for value in summed]
