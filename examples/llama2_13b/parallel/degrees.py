"""How many processes each axis has, and which process stands where."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np

LAUNCH = "python -m paddle.distributed.launch --nproc_per_node N --log_dir LOGS"


@dataclass(frozen=True)
class Degrees:
    """Processes along each axis, the outermost first, in the order of fleet's topology: ranks of tensor are neighbours.

    Args:
        data: copies of the model, and of the optimizer's state.
        pipeline: stages, each with some of the layers.
        sharding: copies of the model that divide the optimizer's state.
        tensor: processes that divide every layer.
    """

    data: int = 1
    pipeline: int = 1
    sharding: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, command: str, processes: int, *, tensor: int = 1, sharding: int = 1, pipeline: int = 1) -> Degrees:
        """What the flags ask for; data takes what they leave. sharding -1 leaves data nothing.

        Raises:
            ValueError: the processes do not make whole copies of the model, or one where sharding wants several.
        """
        asked = {"tensor": tensor, "pipeline": pipeline, "sharding": max(sharding, 1)}
        rest, left = divmod(processes, math.prod(asked.values()))
        if left or not rest:
            raise ValueError(_refusal(command, processes, asked))
        if sharding == -1 and rest == 1:
            raise ValueError(_nobody_to_share(command, processes))
        if sharding == -1:
            return cls(1, pipeline, rest, tensor)
        return cls(rest, pipeline, sharding, tensor)

    @property
    def processes(self) -> int:
        return math.prod(astuple(self))

    def places(self, rank: int) -> dict[str, int]:
        """Where a process stands on each axis."""
        return {axis: int(place) for axis, place in zip(AXES, np.unravel_index(rank, astuple(self)), strict=True)}

    def group(self, rank: int, *axes: str) -> list[int]:
        """The ranks that differ from this one along these axes only, in their order."""
        places = self.places(rank)
        chosen = tuple(slice(None) if axis in axes else places[axis] for axis in AXES)
        found: list[int] = np.arange(self.processes).reshape(astuple(self))[chosen].flatten().tolist()
        return found


AXES = tuple(Degrees.__dataclass_fields__)


def _refusal(command: str, processes: int, asked: dict[str, int]) -> str:
    asked = {axis: degree for axis, degree in asked.items() if degree > 1}
    flags = " x ".join(f"--{axis}_parallel_degree" for axis in asked)
    nearest = " ".join(f"--{axis}_parallel_degree {degree}" for axis, degree in _nearest(processes, asked).items())
    return (
        f"{command}: {flags} must be a divisor of the number of processes {processes}, got "
        f"{' x '.join(map(str, asked.values()))}. The nearest for so many is {nearest}. Or start a multiple of "
        f"{math.prod(asked.values())}: {LAUNCH}"
    )


def _nobody_to_share(command: str, processes: int) -> str:
    have = f"the {processes} processes have" if processes > 1 else "one process has"
    return (
        f"{command}: --sharding must be left out where {have} one copy of the model, got 1 copy to divide the "
        f"optimizer's work. Leave it out, or start a multiple of {2 * processes}: {LAUNCH}"
    )


def _nearest(processes: int, asked: dict[str, int]) -> dict[str, int]:
    """Degrees whose product divides the processes, as few doublings as possible from what was asked."""
    divisors = [degree for degree in range(1, processes + 1) if processes % degree == 0]
    fitting = [each for each in itertools.product(divisors, repeat=len(asked)) if processes % math.prod(each) == 0]

    def distance(degrees: Iterable[int]) -> float:
        return sum(abs(math.log2(have / wanted)) for have, wanted in zip(degrees, asked.values(), strict=True))

    return dict(zip(asked, min(fitting, key=distance), strict=True))
