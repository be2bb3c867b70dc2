"""What a rank holds of the parameters, by the table: their elements, who updates them, and who has them between steps.

Any process finds it for every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from examples.llama2_13b.folders.layout import Table, layer_of, layout
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.sharding import owners
from examples.llama2_13b.train.kept import FLOAT32


@dataclass(frozen=True)
class Held:
    """Of one rank.

    Args:
        sizes: elements of this rank's part of each parameter that its stage has.
        table: of the parameters.
        owners: of those with a gradient: the rank of sharding that updates each.
        rank: of sharding, this rank's.
        elsewhere: names of those whose values are with another rank between steps.
    """

    sizes: dict[str, int]
    table: Table
    owners: dict[str, int]
    rank: int
    elsewhere: set[str]

    @property
    def owned(self) -> set[str]:
        return {name for name, owner in self.owners.items() if owner == self.rank}

    def num_bytes(self, names: Iterable[str]) -> int:
        return sum(self._bytes_of(name) for name in names)

    def _bytes_of(self, name: str) -> int:
        """A rank's part of what is packed is as large as its part of the elements."""
        row, elements = self.table[name], self.sizes[name]
        return FLOAT32 * elements if row.held_bytes is None else row.held_bytes * elements // row.size


def held(model: Llama, mesh: Mesh, places: dict[str, int]) -> Held:
    """Of the rank at these places along the axes."""
    stage, table = places["pipeline"], model.table
    sizes = elements(model, mesh, stage, places["tensor"])

    def owned(names: Sequence[str]) -> dict[str, int]:
        """As `Sharding.owners` finds it: by the largest part of a vocabulary, and what two stages have first."""
        largest = elements(model, mesh, stage, 0)
        shared = [place for place, name in enumerate(names) if len(_stages_of(name, model, mesh)) > 1]
        return dict(zip(names, owners([largest[name] for name in names], mesh.sharding.size, shared), strict=True))

    trained = owned([name for name in sizes if table[name].is_trainable])
    elsewhere: set[str] = set()
    if mesh.sharding.divides_parameters:
        base = owned([name for name in sizes if name in layout(model.config)])
        elsewhere = {name for name, one in base.items() if one != places["sharding"] and _is_matrix(name, table)}
    return Held(sizes, table, trained, places["sharding"], elsewhere)


def elements(model: Llama, mesh: Mesh, stage: int, rank: int) -> dict[str, int]:
    """Of each parameter that a stage's rank of tensor has, in the model's order."""
    return {
        name: sum(part.shard(rank, mesh.tensor.size).size for part in parameter.parts)
        for name, parameter in model.table.items()
        if stage in _stages_of(name, model, mesh)
    }


def _stages_of(name: str, model: Llama, mesh: Mesh) -> set[int]:
    """A tied embedding is on the first stage and on the last."""
    count, is_tied = model.config.num_hidden_layers, model.config.tie_word_embeddings
    ends = {0, mesh.pipeline.stages - 1}
    return ends if is_tied and name == "lm_head.weight" else {mesh.pipeline.stage_of(layer_of(name, count), count)}


def _is_matrix(name: str, table: Table) -> bool:
    return len(table[name].parts[0].shape) == 2
