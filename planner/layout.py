"""How the devices of a run divide its work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusionkit.errors import argument_error

Recompute = Literal["none", "selective", "full"]
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Layout:
    """Degrees of each axis, and how a step goes over them.

    Args:
        tensor, pipeline, data, sharding, context: devices along each axis. Copies of the model are data x sharding.
        stage: what the sharding axis divides: 1 optimizer, 2 gradients too, 3 parameters too; 0 nothing.
        virtual_stages: ranges of layers of each pipeline stage.
        micro_batch: rows of one.
        micro_batches: of a step, on one copy of the model.
        recompute: "none", "selective": attention's scores (`core_attn` of the Llama example), "full": each layer.
        sequence_parallel: ranks of tensor divide the tokens between the products.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sharding: int = 1
    context: int = 1
    stage: int = 1
    virtual_stages: int = 1
    micro_batch: int = 1
    micro_batches: int = 1
    recompute: Recompute = "none"
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        counts = "tensor pipeline data sharding context virtual_stages micro_batch micro_batches"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise argument_error("Layout", name, "at least 1", getattr(self, name))
        if self.stage not in STAGES:
            raise argument_error("Layout", "stage", "0, 1, 2 or 3", self.stage)
        if self.recompute not in RECOMPUTES:
            raise argument_error("Layout", "recompute", " or ".join(RECOMPUTES), repr(self.recompute))
        if self.virtual_stages > 1 and self.pipeline == 1:
            raise argument_error("Layout", "virtual_stages", "1 where pipeline is 1", self.virtual_stages)

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline * self.data * self.sharding * self.context

    @property
    def copies(self) -> int:
        """Of the model, each of which sees rows of its own."""
        return self.data * self.sharding

    @property
    def global_batch(self) -> int:
        """Rows of a step."""
        return self.micro_batch * self.micro_batches * self.copies

    def ranges_of(self, stage: int, count: int) -> list[range]:
        """The numbers of the layers of each range of a pipeline stage; the first ranges have one more if uneven."""
        ranges = self.pipeline * self.virtual_stages
        each, more = divmod(count, ranges)
        return [
            range(place * each + min(place, more), (place + 1) * each + min(place + 1, more))
            for place in range(stage, ranges, self.pipeline)
        ]

    def layers_of(self, stage: int, count: int) -> list[int]:
        """How many layers each range of a pipeline stage has."""
        return list(map(len, self.ranges_of(stage, count)))
