"""The memory of each pipeline stage, item by item: what fusionkit's own ops keep, not a rule of thumb."""

from __future__ import annotations

from dataclasses import dataclass

from fusionkit_planner.architecture import Architecture
from fusionkit_planner.layout import Layout


@dataclass(frozen=True)
class Item:
    """One part of a device's memory.

    Args:
        num_bytes: at the worst moment of a step.
        shrink: what would make it smaller, in words.
    """

    name: str
    num_bytes: float
    shrink: str


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one device of a pipeline stage: of the one that has most.

    Args:
        parameters, gradients, optimizer: exact.
        activations: kept by forward passes, and what the worst backward pass has beside them.
        logits: head and loss.
        buffers: of collectives, and of messages between stages.
        margin: stated, for what an allocator loses between tensors.
        items: all of the above in parts.
    """

    stage: int
    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    margin: float
    items: tuple[Item, ...]

    @property
    def total(self) -> float:
        return (
            self.parameters + self.gradients + self.optimizer + self.activations
            + self.logits + self.buffers + self.margin
        )  # fmt: skip

    def largest(self, count: int = 5) -> list[Item]:
        return sorted(self.items, key=lambda item: -item.num_bytes)[:count]


def memory(
    architecture: Architecture, layout: Layout, sequence: int, precision: str = "bfloat16"
) -> list[StageMemory]:
    """Of each pipeline stage, in their order. precision: of the activations; parameters are float32."""
    raise NotImplementedError
