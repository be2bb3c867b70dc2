"""The memory of each pipeline stage, item by item: what fusionkit's own ops keep, not a rule of thumb.

Parameters, gradients and optimizer state are float32 and follow from the table of weights. What is kept follows from
the order of the passes. The peak is the largest sum at any moment of the backward passes, or in the update.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress

from fusionkit_planner import backward_moments, saved_tensors, stage_modules, weights
from fusionkit_planner.architecture import Architecture
from fusionkit_planner.backward_moments import Gradients
from fusionkit_planner.layout import Layout
from fusionkit_planner.saved_tensors import FLOAT32, Kernels, Sizes
from fusionkit_planner.stage_modules import Place

from fusionkit.errors import argument_error

MOMENTS = 2
MARGIN = 0.08  # the most that a row of b200_llama3.csv reserves beyond what it allocates; 5% on average
ELEMENTS = {"bfloat16": 2, "float16": 2, "float32": 4}
LOGITS = "gradients of the loss"
BUFFERS = ("gradients of others", "what a stage hands on", "matrices of other devices")

SHRINKS = {
    "parameters": "more tensor or pipeline devices, or sharding of stage 3",
    "gradients": "more tensor or pipeline devices, or sharding of stage 2",
    "gradients of others": "sharding of stage 2, whose gradients leave for their owners in every backward pass",
    "moments of the optimizer": "more sharding devices",
    saved_tensors.STREAM: "recompute full, sequence parallelism, or fewer rows in a micro-batch",
    saved_tensors.PROJECTED: "recompute full, more tensor devices, or fewer rows in a micro-batch",
    saved_tensors.SCORED: "recompute full, more tensor devices, or fewer rows in a micro-batch",
    saved_tensors.STATED: "recompute selective, or fewer rows in a micro-batch",
    saved_tensors.GATED: "recompute full, more tensor devices, or fewer rows in a micro-batch",
    LOGITS: "more tensor devices, which divide the vocabulary",
    "the worst backward pass": "fewer rows in a micro-batch, or more tensor devices",
    "what a stage hands on": "fewer rows in a micro-batch, or sequence parallelism",
    "matrices of other devices": "sharding of stage 2, which leaves parameters whole",
    "margin": "an allocator that keeps fewer gaps",
}
ANY = "fewer rows in a micro-batch"


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
    """Bytes of the device of a pipeline stage that has most, at the worst moment of a step.

    Args:
        parameters, gradients, optimizer: of this device; gradients are those that the optimizer
            reads, as far as they are there then.
        activations: kept by forward passes, and what the worst backward pass has beside them.
        logits: what the loss keeps.
        buffers: gradients and matrices of other devices, and messages between stages.
        margin: for what an allocator loses between tensors, 8% of the rest.
        items: all of the above in parts.
        moment: which the worst is, in words.
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
    moment: str

    @property
    def peak(self) -> float:
        """Without the margin."""
        state = self.parameters + self.gradients + self.optimizer
        return state + self.activations + self.logits + self.buffers

    @property
    def total(self) -> float:
        return self.peak + self.margin

    def largest(self, count: int = 5) -> list[Item]:
        return sorted(self.items, key=lambda item: -item.num_bytes)[:count]


def memory(
    architecture: Architecture,
    layout: Layout,
    sequence: int,
    precision: str = "bfloat16",
    kernels: Kernels = "fused",
    stages: Sequence[int] | None = None,
) -> list[StageMemory]:
    """Of each pipeline stage, in their order.

    Args:
        stages: those that are wanted; all if not given.
        precision: of the activations; parameters and optimizer are float32.
        kernels: "fused" of fusionkit, or "device": a vendor's, which keep copies.
    """
    if precision not in ELEMENTS:
        raise argument_error("plan", "precision", " or ".join(ELEMENTS), repr(precision))
    sizes = Sizes.of(architecture, layout, sequence, ELEMENTS[precision], kernels)
    return [Stage(architecture, layout, sizes, stage).memory() for stage in stages or range(layout.pipeline)]


def needed_bytes(architecture: Architecture, layout: Layout, sequence: int, precision: str, stage: int) -> float:
    """`total` of one stage's `memory`, without its parts: a search asks for thousands."""
    sizes = Sizes.of(architecture, layout, sequence, ELEMENTS[precision], "fused")
    return Stage(architecture, layout, sizes, stage).total


@dataclass(frozen=True)
class State:
    """Bytes of weights, in float32.

    Args:
        owned: of those that this device updates.
        here: of those that are here between passes.
        largest, total: of the largest, and of all.
    """

    owned: float
    here: float
    largest: float
    total: float


class Stage:
    """One stage's device."""

    def __init__(self, architecture: Architecture, layout: Layout, sizes: Sizes, stage: int) -> None:
        self.stage = stage
        layers = tuple(layout.ranges_of(stage, architecture.num_hidden_layers))
        self.place = place = Place(architecture, layout.tensor, layers, stage == 0, stage == layout.pipeline - 1)
        lenders = layout.sharding if layout.stage == 3 else 1
        self.state = _state(place, layout.sharding if layout.stage else 1, lenders > 1)
        self.chunks = stage_modules.chunks(place, sizes, layout.recompute, lenders)
        self.sent = 0.0 if place.is_last and len(layers) == 1 else sizes.stream
        ranks = layout.sharding if layout.stage >= 2 else 1
        gradients = Gradients(self.state.owned, ranks, self.state.largest, self.state.total)
        schedule = (stage, layout.pipeline, layout.micro_batches)
        self.worst = backward_moments.worst(*schedule, self.chunks, gradients, self.sent)

    @property
    def total(self) -> float:
        """That of `memory`, without its parts."""
        return (1 + MARGIN) * (self.state.here + MOMENTS * self.state.owned + self.worst.total)

    def memory(self) -> StageMemory:
        name, beside = self._explained()
        moments = MOMENTS * self.state.owned
        state = {"parameters": self.state.here, "gradients": self.worst.own, "moments of the optimizer": moments}
        logits = beside.get(LOGITS, 0.0)
        buffers = sum(beside.get(name, 0.0) for name in BUFFERS)
        every = {**state, **beside}
        every["margin"] = MARGIN * sum(every.values())
        return StageMemory(
            stage=self.stage,
            parameters=self.state.here,
            gradients=self.worst.own,
            optimizer=moments,
            activations=sum(beside.values()) - logits - buffers,
            logits=logits,
            buffers=buffers,
            margin=every["margin"],
            items=tuple(Item(name, size, SHRINKS.get(name, ANY)) for name, size in every.items() if size),
            moment=name,
        )

    def _explained(self) -> tuple[str, dict[str, float]]:
        """(the worst moment in words, bytes by name beside weights, own gradients and the optimizer's moments)."""
        worst = self.worst
        if worst.chunk < 0:
            return "the optimizer's update", {}
        chunk = self.chunks.modules[worst.chunk]
        whole = [
            {name: count * size for name, size in module.kept.items()}
            for modules, count in zip(self.chunks.modules, worst.counts, strict=True)
            for module in modules
        ]
        gone = [
            {name: -size for name, size in module.kept.items()}
            for module in chunk[worst.module + (not worst.is_over) :]
        ]
        module, name = chunk[worst.module], stage_modules.name(self.place, self.chunks, worst.chunk, worst.module)
        beside = stage_modules.total([*whole, *gone, {"gradients of others": worst.others}])
        beside |= {"what a stage hands on": self.sent, "matrices of other devices": module.borrowed}
        if worst.is_over:
            return f"the end of the backward pass of {name}", beside
        return f"the backward pass of {name}", {**beside, "the worst backward pass": module.passing}


@lru_cache(maxsize=4096)
def _state(place: Place, ranks: int, lends: bool) -> State:
    """Of the device that updates most.

    Args:
        ranks: that divide the updates.
        lends: between passes a device has no matrices but its own.
    """
    sizes = [FLOAT32 * one.elements for one in weights.of_stage(*place.weights)]
    owns = weights.owned(*place.weights, ranks)
    stays = [
        is_own or not (lends and one.is_matrix)
        for one, is_own in zip(weights.of_stage(*place.weights), owns, strict=True)
    ]
    return State(_chosen(sizes, owns), _chosen(sizes, stays), float(max(sizes)), float(sum(sizes)))


def _chosen(sizes: Iterable[int], are: Iterable[bool]) -> float:
    return float(sum(compress(sizes, are)))
