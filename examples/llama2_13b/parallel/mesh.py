"""The mesh: copies of the model, each on one process or divided between several, and who speaks for all.

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
from paddle.distributed.fleet.utils.sequence_parallel_utils import is_sequence_parallel_parameter

from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel, is_shard
from fusionkit.optimizer import global_norm
from fusionkit.parallel import Communicator, collectives
from fusionkit.parallel.groups import communicator_of

Item = TypeVar("Item")
# The others wait while one writes: 13B's checkpoint is 156 GB. A process that ended is noticed at once all the same.
SAVING_SECONDS = 3600.0


@dataclass(frozen=True)
class Mesh:
    """This process's place among all. Made once, by `join`, and passed to whoever needs it.

    Args:
        data: the group of those that have the same part of the other copies; None with one copy.
        tensor: how the processes of a copy divide it.
        world: the group of all; None alone.
    """

    data: Any = None
    tensor: TensorParallel = ALONE
    world: Any = None

    @classmethod
    def join(cls, command: str, tensor_parallel_degree: int, sequence_parallel: bool) -> Mesh:
        """Join the other processes of a command, each with the device that the launcher gave it.

        Raises:
            ValueError: the processes do not make whole copies.
        """
        processes = int(paddle.distributed.get_world_size())
        if processes % tensor_parallel_degree:
            raise ValueError(
                f"{command}: --tensor_parallel_degree must be a divisor of the number of processes {processes}, got "
                f"{tensor_parallel_degree}. Start more: "
                "python -m paddle.distributed.launch --nproc_per_node N --log_dir LOGS"
            )
        if processes == 1:
            return cls()
        join = _on_host if paddle.get_device() == "cpu" else _on_devices
        data, tensor, world = join(processes // tensor_parallel_degree, tensor_parallel_degree)
        return cls(data, ALONE if tensor is None else TensorParallel(tensor, sequence_parallel), world)

    @property
    def processes(self) -> int:
        return 1 if self.world is None else int(self.world.world_size)

    @property
    def copies(self) -> int:
        return 1 if self.data is None else int(self.data.world_size)

    @property
    def copy(self) -> int:
        """Which copy this process has, or has a part of."""
        return 0 if self.data is None else int(self.data.rank)

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.copy == 0 and self.tensor.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This copy's part; it may be empty."""
        return list(items[self.copy :: self.copies])

    def totals(self, *values: float) -> list[float]:
        """Sums over the copies."""
        return list(values) if self.data is None else _summed(values, self.data)

    def any_process(self, value: bool) -> bool:
        """Whether it holds for one of all processes; all wait here for the last."""
        return value if self.world is None else _summed([value], self.world)[0] > 0

    def reduce_gradients(self, parameters: Iterable[paddle.Tensor]) -> None:
        """Every gradient becomes that of the whole copy, and its mean over the copies; one that had no rows counts
        with zeros. Frozen parameters have none."""
        parameters = [parameter for parameter in parameters if not parameter.stop_gradient]
        self._complete_gradients(parameters)
        if self.data is None:
            return
        for parameter in parameters:
            gradient = paddle.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = collectives.all_reduced(gradient, self.data).scale_(1 / self.copies)

    def _complete_gradients(self, parameters: list[paddle.Tensor]) -> None:
        """Sum the gradients of weights that have seen this rank's tokens only, in one call.

        All ranks of a copy have one or none has: in a step of few rows a copy of the model may get no row.
        """
        partial_ones = [p for p in parameters if is_sequence_parallel_parameter(p) and p.grad is not None]
        if not partial_ones:
            return
        flat = paddle.concat([parameter.grad.flatten() for parameter in partial_ones])
        sums = paddle.split(collectives.all_reduced(flat, self.tensor.group), [p.size for p in partial_ones])
        for parameter, total in zip(partial_ones, sums, strict=True):
            parameter.grad = total.reshape(parameter.shape)

    def gradient_norm(self, parameters: Iterable[paddle.Tensor]) -> float:
        """Of all gradients together: shards count on their ranks, what all ranks have counts once. The same on all."""
        found = [parameter for parameter in parameters if parameter.grad is not None]
        whole = global_norm(parameter.grad for parameter in found if not is_shard(parameter))
        own = global_norm(parameter.grad for parameter in found if is_shard(parameter))
        if self.tensor.size == 1:
            return float(np.hypot(whole, own))
        return float(np.sqrt(whole**2 + _summed([own**2], self.tensor.group)[0]))


def _on_devices(copies: int, tensor_parallel_degree: int) -> tuple[Any, Any, Any]:
    """fleet's topology: the groups data, tensor and world; one of a single process is None."""
    strategy = fleet.DistributedStrategy()
    axes = {"dp_degree": copies, "mp_degree": tensor_parallel_degree, "pp_degree": 1, "sharding_degree": 1}
    strategy.hybrid_configs = axes
    fleet.init(is_collective=True, strategy=strategy)
    made = fleet.get_hybrid_communicate_group()
    data = made.get_data_parallel_group() if copies > 1 else None
    tensor = made.get_model_parallel_group() if tensor_parallel_degree > 1 else None
    return data, tensor, paddle.distributed.get_group()


def _on_host(copies: int, tensor_parallel_degree: int) -> tuple[Any, Any, Any]:
    """The same groups without fleet: while it makes its own, Paddle 3.3.1's gloo failed in 1 of 25 starts of two
    processes, and in most of four."""
    store = paddle.base.core.create_or_get_global_tcp_store()
    rank = paddle.distributed.get_rank()
    copy, part = divmod(rank, tensor_parallel_degree)

    def joined(name: str, rank: int, size: int) -> Communicator | None:
        if size == 1:
            return None
        return Communicator.from_store(store, rank, size, name=f"training/{name}", timeout=SAVING_SECONDS)

    return (
        joined(f"data {part}", copy, copies),
        joined(f"tensor {copy}", part, tensor_parallel_degree),
        joined("world", rank, copies * tensor_parallel_degree),
    )


def _summed(values: Sequence[float], group: Any) -> list[float]:
    summed = communicator_of(group).all_reduce(np.array(values, dtype=np.float64))
    return [float(value) for value in summed]
