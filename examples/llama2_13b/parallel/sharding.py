"""Sharding: copies of the model divide the optimizer's work, and with it the memory of its state.

Each trainable parameter has one owner among the ranks of the group. The owner alone gets the sum of the gradients, has
the moments and computes the update; then all take over the new value. Parameters go to owners whole, so a moment is one
tensor of the parameter's shape, on disk as in memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from paddle import Tensor

from examples.llama2_13b.parallel.pipeline import is_shared
from examples.llama2_13b.parallel.ranks import Ranks
from examples.llama2_13b.parallel.tensor_parallel import largest_part
from fusionkit.parallel import collectives

STAGES = ("stage1", "stage2", "stage3")


@dataclass(frozen=True)
class Sharding(Ranks):
    """How the copies of a group divide the optimizer's work; by default one does it all.

    Args:
        group: of the copies; None is one.
        stage: 1 divides the moments; 2 the gradients too, which leave for their owners in every backward pass; 3 the
            matrices too, see `divided_layers`.
    """

    stage: int = 1

    @property
    def divides_parameters(self) -> bool:
        return self.size > 1 and self.stage == 3

    def has(self, parameter: Tensor) -> bool:
        """Whether its value is here between steps. What has no mark is on all ranks."""
        return bool(getattr(parameter, "kept_by", self.rank) == self.rank)

    def owners(self, parameters: Iterable[Tensor]) -> list[int]:
        """Alike on all tensor-parallel ranks, and of a tied embedding on the two stages that have it."""
        parameters = list(parameters)
        shared = [place for place, parameter in enumerate(parameters) if is_shared(parameter)]
        return owners([largest_part(parameter) for parameter in parameters], self.size, shared)

    def own(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Those that this rank updates."""
        owned = zip(parameters, self.owners(parameters), strict=True)
        return [parameter for parameter, owner in owned if owner == self.rank]

    def spread(self, parameters: Sequence[Tensor]) -> None:
        """Each takes over its owner's value, but for those that stay with their owners."""
        if self.size == 1:
            return
        owned = zip(parameters, self.owners(parameters), strict=True)
        works = [
            collectives.start_broadcast(parameter, owner, self.group)
            for parameter, owner in owned
            if not hasattr(parameter, "kept_by")
        ]
        for work in works:  # all are under way: each rank sends while it receives
            work.wait()

    def writes(self, parameter: Tensor) -> bool:
        """Whether its value is written by this rank: what all have the first writes."""
        return bool(getattr(parameter, "kept_by", 0) == self.rank)


def owners(sizes: Sequence[int], ranks: int, first: Collection[int] = ()) -> list[int]:
    """The owner of each parameter: from the largest on, each goes to the rank that has least so far.

    So no rank has more than its equal part and one parameter. Of equal loads that rank gets it which has least of the
    same layer, so that all ranks send when a layer's matrices are needed, and not one of them: the matrices of one size
    are those of layer after layer. Else the lower rank does.

    Args:
        first: places of those that are given away before the largest, whatever their size.
    """
    loads = [0] * ranks
    of_layer: defaultdict[int, list[int]] = defaultdict(lambda: [0] * ranks)
    met: Counter[int] = Counter()
    found = [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: (place not in first, -sizes[place])):
        size = sizes[place]
        nearby = of_layer[met[size]]
        rank = min(range(ranks), key=lambda rank: (loads[rank], nearby[rank]))
        for counted in (loads, nearby):
            counted[rank] += size
        met[size] += 1
        found[place] = rank
    return found


UNSHARDED = Sharding()
