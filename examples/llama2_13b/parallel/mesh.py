"""The mesh: copies of the model, each on one process or divided between several, and who speaks for all.

`python -m paddle.distributed.launch --devices 0,1 --log_dir LOGS SCRIPT` starts a process for each device. They stand
along four axes, the outermost first:

    data       copies of the model
    pipeline   stages of a copy, each with some of its layers
    sharding   copies of the model too, which divide the optimizer's work, and in stage 3 the weights: sharding.py
    tensor     processes that divide every layer of a copy: tensor_parallel.py

A step's rows are shared out over data and sharding. Alone, a process is the first of one, and nothing here costs
anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import paddle
from paddle.distributed import fleet

from examples.llama2_13b.parallel.degrees import AXES, Degrees
from examples.llama2_13b.parallel.pipeline import ONE_STAGE, PipelineParallel, counts_here
from examples.llama2_13b.parallel.ranks import Ranks
from examples.llama2_13b.parallel.sharding import UNSHARDED, Sharding
from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel, is_shard
from examples.llama2_13b.parallel.trace import Trace
from examples.llama2_13b.parallel.writers import Writers
from fusionkit.optimizer import global_norm
from fusionkit.parallel import Communicator
from fusionkit.parallel.groups import communicator_of, known_communicator

Item = TypeVar("Item")
# That hosts wait for each other, with devices and without: all wait for the slowest to write its part of a checkpoint,
# which for 13B is 156 GB. A process that ended is noticed at once all the same.
SAVING_SECONDS = 3600.0


@dataclass(frozen=True)
class Mesh:
    """This process's place among all. Made once, by `join`, and passed to whoever needs it.

    Args:
        data: the group of those that differ from this process along this axis only; None for a degree of 1.
        pipeline: which layers each process of a copy has.
        sharding: how copies divide the optimizer's work.
        tensor: how the processes that have the same layers of a copy divide them.
        replicas: the group of those that differ along data and sharding: they have the same part of the other copies.
        world: the group of all; None alone.
        trace: where the time of some steps goes.
    """

    data: Any = None
    pipeline: PipelineParallel = ONE_STAGE
    sharding: Sharding = UNSHARDED
    tensor: TensorParallel = ALONE
    replicas: Any = None
    world: Any = None
    trace: Trace = field(default_factory=Trace, compare=False)

    @classmethod
    def join(
        cls,
        command: str,
        *,
        tensor_parallel_degree: int = 1,
        sharding_parallel_degree: int = 1,
        sharding_stage: int = 1,
        pipeline_parallel_degree: int = 1,
        virtual_pp_degree: int = 1,
        sequence_parallel: bool = True,
    ) -> Mesh:
        """Join the other processes of a command, each with the device that the launcher gave it. data takes the rest.

        Raises:
            ValueError: the processes do not make whole copies.
        """
        processes = int(paddle.distributed.get_world_size())
        degrees = Degrees.of(
            command,
            processes,
            tensor=tensor_parallel_degree,
            sharding=sharding_parallel_degree,
            pipeline=pipeline_parallel_degree,
        )
        if processes == 1:
            return cls()
        join = _on_host if paddle.get_device() == "cpu" else _on_devices
        groups = join(degrees)
        tensor, pipeline, sharding = (groups.pop(axis) for axis in ("tensor", "pipeline", "sharding"))
        return cls(
            **groups,
            pipeline=PipelineParallel(pipeline, virtual_pp_degree),
            sharding=UNSHARDED if sharding is None else Sharding(sharding, sharding_stage),
            tensor=ALONE if tensor is None else TensorParallel(tensor, sequence_parallel),
        )

    @property
    def degrees(self) -> Degrees:
        return Degrees(Ranks(self.data).size, self.pipeline.size, self.sharding.size, self.tensor.size)

    @property
    def processes(self) -> int:
        return Ranks(self.world).size

    @property
    def rank(self) -> int:
        """Of all processes."""
        return Ranks(self.world).rank

    def whereabouts(self, error: str) -> str:
        """Where this process stands, and which processes the ranks are that an error counts.

        Args:
            error: its text. An error of a communicator has the communicator's number.
        """
        axes = [axis for axis in AXES if getattr(self.degrees, axis) > 1]
        stands = self.degrees.places(self.rank)
        places = ", ".join(f"{axis} {stands[axis]} of {getattr(self.degrees, axis)}" for axis in axes)
        here = f"This is process {self.rank} of {self.processes}: {places}"
        members = {name: " ".join(map(str, ranks)) for name, ranks in self._members().items()}
        for name, communicator in self._communicators().items():
            if communicator.number in error:
                whose = f"the group {name}: from 0 on the processes {members[name]}"
                return f"{here}. The error counts the ranks of {whose}"
        every = "; ".join(f"{name} {ranks}" for name, ranks in members.items())
        return f"{here}. An error counts the ranks of a group, from 0 on these processes: {every}"

    def _groups(self) -> dict[str, Any]:
        """Of several processes; where two are of the same processes, the one along one axis comes first."""
        axes = {"pipeline": self.pipeline.group, "sharding": self.sharding.group, "tensor": self.tensor.group}
        groups = {"data": self.data, **axes, "replicas": self.replicas, "world": self.world}
        return {name: group for name, group in groups.items() if group is not None}

    def _members(self) -> dict[str, list[int]]:
        """The processes of each group, in the order of its ranks."""
        return {name: self.degrees.group(self.rank, *GROUPS[name]) for name in self._groups()}

    def _communicators(self) -> dict[str, Communicator]:
        found = {name: known_communicator(group) for name, group in self._groups().items()}
        return {name: communicator for name, communicator in found.items() if communicator is not None}

    @property
    def copies(self) -> int:
        """Of the model, each with rows of its own."""
        return Ranks(self.replicas).size

    @property
    def copy(self) -> int:
        """Which copy this process has, or has a part of."""
        return Ranks(self.replicas).rank

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.copy == 0 and self.pipeline.is_first and self.tensor.rank == 0

    @property
    def holds_state(self) -> bool:
        """Whether this process holds a part of what a checkpoint has: the other ranks along data hold the same."""
        return Ranks(self.data).rank == 0

    @property
    def holds_weights(self) -> bool:
        """Whether this process holds a part of the weights to save. The first copy has all, but in stage 3."""
        return self.holds_state if self.sharding.divides_parameters else self.copy == 0

    @property
    def writers(self) -> Writers:
        """The ranks that hold a part of the state, this rank's among them."""
        return Writers((self.pipeline.group, self.sharding.group, self.tensor.group))

    @property
    def everyone(self) -> Writers:
        return Writers((self.world,))

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This copy's part; it may be empty."""
        return list(items[self.copy :: self.copies])

    def totals(self, *values: float) -> list[float]:
        """Sums over the copies."""
        return list(values) if self.replicas is None else _summed(values, self.replicas)

    def any_process(self, value: bool) -> bool:
        """Whether it holds for one of all processes; all wait here for the last."""
        return value if self.world is None else _summed([value], self.world)[0] > 0

    def gathered(self, values: Sequence[float]) -> list[list[float]]:
        """Those of every process, in the order of ranks, on all processes."""
        if self.world is None:
            return [list(values)]
        found: list[list[float]] = communicator_of(self.world).all_gather(np.array(values, dtype=np.float64)).tolist()
        return found

    def texts_of_all(self, text: str) -> list[str]:
        """As `gathered`."""
        if self.world is None:
            return [text]
        own = np.frombuffer(text.encode(), np.uint8)
        lengths = [int(length) for (length,) in self.gathered([len(own)])]
        padded = np.zeros(max(lengths), np.uint8)
        padded[: len(own)] = own
        rows = communicator_of(self.world).all_gather(padded).reshape(len(lengths), -1)
        return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]

    def gradient_norm(self, parameters: Iterable[paddle.Tensor]) -> float:
        """Of all gradients: shards count on their ranks, what several ranks have once. The same on all."""
        found = [parameter for parameter in parameters if parameter.grad is not None and counts_here(parameter)]
        counted = found if self.tensor.rank == 0 else [parameter for parameter in found if is_shard(parameter)]
        squares = global_norm(parameter.grad for parameter in counted) ** 2
        # With sharding each gradient is its owner's alone.
        for group in (self.sharding.group, self.tensor.group, self.pipeline.group):
            squares = squares if group is None else _summed([squares], group)[0]
        return math.sqrt(squares)


# The mesh's groups, and the axes along which the members of each differ.
GROUPS = {axis: (axis,) for axis in AXES} | {"replicas": ("data", "sharding"), "world": AXES}


def _on_devices(degrees: Degrees) -> dict[str, Any]:
    """Groups of fleet's topology; one of a single process is None."""
    strategy = fleet.DistributedStrategy()
    axes = {"data": "dp", "pipeline": "pp", "sharding": "sharding", "tensor": "mp"}
    strategy.hybrid_configs = {f"{theirs}_degree": getattr(degrees, ours) for ours, theirs in axes.items()}
    fleet.init(is_collective=True, strategy=strategy)
    made = fleet.get_hybrid_communicate_group()
    groups = {
        "data": made.get_data_parallel_group(),
        "pipeline": made.get_pipe_parallel_group(),
        "sharding": made.get_sharding_parallel_group(),
        "tensor": made.get_model_parallel_group(),
        "world": paddle.distributed.get_group(),
    }
    groups = {name: group if group.nranks > 1 else None for name, group in groups.items()}
    both = groups["data"] and groups["sharding"]
    replicas = made.create_fuse_group(["data", "sharding"])[1] if both else groups["data"] or groups["sharding"]
    groups |= {"replicas": replicas}
    for group in groups.values():
        if group is not None:
            communicator_of(group, timeout=SAVING_SECONDS)
    return groups


def _on_host(degrees: Degrees) -> dict[str, Any]:
    """The same groups without fleet: while it makes its own, Paddle 3.3.1's gloo failed in 1 of 25 starts of two
    processes, and in most of four."""
    store = paddle.base.core.create_or_get_global_tcp_store()
    rank = paddle.distributed.get_rank()
    made: dict[tuple[int, ...], Communicator | None] = {(rank,): None}
    groups = {}
    for name, axes in GROUPS.items():
        ranks = tuple(degrees.group(rank, *axes))
        if ranks not in made:
            made[ranks] = Communicator.from_store(
                store, ranks.index(rank), len(ranks), name=f"training/{name} {ranks[0]}", timeout=SAVING_SECONDS
            )
        groups[name] = made[ranks]
    return groups


def _summed(values: Sequence[float], group: Any) -> list[float]:
    summed = communicator_of(group).all_reduce(np.array(values, dtype=np.float64))
    return [float(value) for value in summed]
