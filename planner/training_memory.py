"""The memory of each pipeline stage, item by item: what fusionkit's own ops keep, not a rule of thumb.

Parameters, gradients and optimizer state are float32 and follow from the table of weights. What is kept follows from
the order of the passes. The peak is the largest sum at any moment of the backward passes, or in the update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fusionkit_planner import pipeline_schedule, saved_tensors, weights
from fusionkit_planner.architecture import Architecture
from fusionkit_planner.layout import Layout, Recompute
from fusionkit_planner.saved_tensors import FLOAT32, Bytes, Kernels, Sizes
from fusionkit_planner.weights import Weight

from fusionkit.errors import argument_error

MOMENTS = 2
# Of gradients, from stage 2 of sharding on: bytes from which neighbours travel as one, and how many do at one time.
BUCKET, ON_THE_WAY = 10e6, 2
MARGIN = 0.08  # the most that a row of b200_llama3.csv reserves beyond what it allocates; 5% on average
ELEMENTS = {"bfloat16": 2, "float16": 2, "float32": 4}
LOGITS = "gradients of the loss"

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


@dataclass(frozen=True)
class Module:
    """A part of a chunk in a backward pass.

    Args:
        kept: bytes that its forward pass leaves, by name.
        passing: bytes that its backward pass needs and gives back.
        gradients: bytes of its weights' gradients.
        borrowed: bytes of matrices that are here meanwhile, and with their owners between passes.
    """

    name: str
    kept: Bytes
    passing: float
    gradients: float
    borrowed: float


@dataclass(frozen=True)
class Moment:
    """Of a backward pass.

    Args:
        total: bytes beside parameters and the optimizer's moments.
        counts: micro-batches that each chunk keeps, whole.
        chunk, module: where the backward pass stands; -1, -1 while the optimizer updates.
        before, grown: bytes of gradients of earlier passes, and of this one so far.
        is_over: the module's own values have gone, and its gradients are there.
    """

    total: float
    counts: tuple[int, ...] = ()
    chunk: int = -1
    module: int = -1
    before: float = 0.0
    grown: float = 0.0
    is_again: bool = False
    is_over: bool = False


class Stage:
    """One stage's device."""

    def __init__(self, architecture: Architecture, layout: Layout, sizes: Sizes, stage: int) -> None:
        self.architecture, self.layout, self.sizes, self.stage = architecture, layout, sizes, stage
        self.is_first, self.is_last = stage == 0, stage == layout.pipeline - 1
        self.layers = weights.layers_of(layout, stage, architecture.num_hidden_layers)
        numbers = tuple(number for layers in self.layers for number in layers)
        place = (architecture, layout.tensor, numbers, (self.is_first, self.is_last))
        self.weights = weights.of_stage(*place)
        self.elements = weights.elements(*place)
        self.owns = weights.owned(*place, layout.sharding if layout.stage else 1)
        self.divides_parameters = layout.stage == 3 and layout.sharding > 1
        self._largest = float(FLOAT32 * max(one.elements for one in self.weights))
        self._total = float(FLOAT32 * sum(self.elements.values()))
        self.divides_gradients = layout.stage >= 2 and layout.sharding > 1

    def memory(self) -> StageMemory:
        owned = FLOAT32 * sum(one.elements for one, is_own in zip(self.weights, self.owns, strict=True) if is_own)
        parameters = self._bytes(
            one for one, owns in zip(self.weights, self.owns, strict=True) if self._is_here(one, owns)
        )
        self.chunks = [self._modules(chunk) for chunk in range(self.layout.virtual_stages)]
        worst = self._worst(float(owned))
        name, beside = self._explained(worst, float(owned))
        gradients = beside.pop("gradients")
        state = {"parameters": parameters, "gradients": gradients, "moments of the optimizer": float(MOMENTS * owned)}
        logits = beside.get(LOGITS, 0.0)
        buffers = sum(beside.get(name, 0.0) for name in BUFFERS)
        every = {**state, **beside}
        every["margin"] = MARGIN * sum(every.values())
        return StageMemory(
            stage=self.stage,
            parameters=parameters,
            gradients=gradients,
            optimizer=state["moments of the optimizer"],
            activations=sum(beside.values()) - logits - buffers,
            logits=logits,
            buffers=buffers,
            margin=every["margin"],
            items=tuple(Item(name, size, SHRINKS.get(name, ANY)) for name, size in every.items() if size),
            moment=name,
        )

    def _is_here(self, weight: Weight, is_own: bool) -> bool:
        return is_own or not (self.divides_parameters and weight.is_matrix)

    def _bytes(self, chosen: Iterable[Weight]) -> float:
        return float(FLOAT32 * sum(one.elements for one in chosen))

    @property
    def _sent(self) -> float:
        """The last output, which is on its way during a backward pass."""
        return 0.0 if self.is_last and len(self.chunks) == 1 else self.sizes.stream

    def _worst(self, owned: float) -> Moment:
        """The first of the largest."""
        worst = Moment(owned)
        sizes = [[sum(module.kept.values()) for module in chunk] for chunk in self.chunks]
        kept = [sum(chunk) for chunk in sizes]
        gradients = [sum(module.gradients for module in chunk) for chunk in self.chunks]
        layout, sent = self.layout, self._sent
        for counts, chunk, done in backward_passes(self.stage, layout.pipeline, layout.micro_batches, len(self.chunks)):
            now = sent + sum(count * size for count, size in zip(counts, kept, strict=True))
            before, grown, again = sum(gradients[each] for each in done), 0.0, chunk in done
            held = self._held(before, grown, again, owned)
            for place in range(len(sizes[chunk]) - 1, -1, -1):
                module = self.chunks[chunk][place]
                total = now + held + module.borrowed + module.passing
                if total > worst.total:
                    worst = Moment(total, counts, chunk, place, before, grown, again)
                now -= sizes[chunk][place]
                grown += module.gradients
                held = self._held(before, grown, again, owned)
                total = now + held + module.borrowed
                if total > worst.total:
                    worst = Moment(total, counts, chunk, place, before, grown, again, is_over=True)
        return worst

    def _explained(self, worst: Moment, owned: float) -> tuple[str, dict[str, float]]:
        """(the moment in words, bytes by name)."""
        if worst.chunk < 0:
            return "the optimizer's update", {"gradients": owned}
        chunk = self.chunks[worst.chunk]
        whole = [
            {name: count * size for name, size in module.kept.items()}
            for modules, count in zip(self.chunks, worst.counts, strict=True)
            for module in modules
        ]
        gone = [
            {name: -size for name, size in module.kept.items()}
            for module in chunk[worst.module + (not worst.is_over) :]
        ]
        module = chunk[worst.module]
        own, others = self._gradients(worst.before, worst.grown, worst.is_again, owned)
        beside = _sum([*whole, *gone, {"gradients": own, "gradients of others": others}])
        beside |= {"what a stage hands on": self._sent, "matrices of other devices": module.borrowed}
        if worst.is_over:
            return f"the end of the backward pass of {module.name}", beside
        return f"the backward pass of {module.name}", {**beside, "the worst backward pass": module.passing}

    def _held(self, before: float, grown: float, is_again: bool, owned: float) -> float:
        """All of `_gradients`."""
        if not self.divides_gradients:
            return before if is_again else before + grown
        return sum(self._gradients(before, grown, is_again, owned))

    def _gradients(self, before: float, grown: float, is_again: bool, owned: float) -> tuple[float, float]:
        """(own, others') of earlier passes, and of this one so far. From stage 2 of sharding on a device keeps the sums
        that it owns. The others' leave in buckets: one that is not full waits for each owner, and some travel."""
        held = before + (0.0 if is_again else grown)
        if not self.divides_gradients:
            return min(held, owned), max(0.0, held - owned)
        own, others = (owned if before else min(grown, owned)), grown * (1 - 1 / self.layout.sharding)
        waiting = min(others, self.layout.sharding * BUCKET)
        bucket = min(max(BUCKET, self._largest), self._total / self.layout.sharding)
        travelling = ON_THE_WAY * bucket if before else min(others - waiting, ON_THE_WAY * bucket)
        return own, waiting + travelling

    def _modules(self, chunk: int) -> list[Module]:
        """In the order of the forward pass."""
        s, layers = self.sizes, self.layers[chunk]
        found = [half for number in layers for half in self._layer(number, number == layers.start)]
        if self.is_first and chunk == 0:
            own = self._gradients_of("embedding", -1)
            found.insert(0, Module("the embedding", saved_tensors.embedding(s), own, own, self._borrowed(layers[:1])))
        if self.is_last and chunk == self.layout.virtual_stages - 1:
            own = self._gradients_of("head", -1)
            found.append(Module("the head", saved_tensors.head(s), 0.0, own, self._borrowed([-1, *layers[-1:]])))
        elif self.layout.pipeline > 1:
            found.append(Module("what a stage hands on", {}, s.stream, 0.0, self._borrowed(layers[-2:])))
        return found

    def _layer(self, number: int, is_first: bool) -> list[Module]:
        borrowed = self._borrowed([number] if is_first else [number - 1, number])
        attention, mlp = self._gradients_of("attention", number), self._gradients_of("mlp", number)
        halves = _halves(self.sizes, self.layout.recompute, is_first)
        gradients = (attention + mlp,) if len(halves) == 1 else (attention, mlp)
        return [
            Module(f"{half}layer {number}", kept, passing, own, borrowed)
            for (half, kept, passing), own in zip(halves, gradients, strict=True)
        ]

    def _gradients_of(self, module: str, layer: int) -> float:
        return float(FLOAT32 * self.elements[module, layer])

    def _borrowed(self, layers: Iterable[int]) -> float:
        """Matrices of these layers that other devices own; -1 is the head."""
        if not self.divides_parameters:
            return 0.0
        wanted = set(layers)
        return self._bytes(
            one
            for one, is_own in zip(self.weights, self.owns, strict=True)
            if one.layer in wanted and one.module != "embedding" and not self._is_here(one, is_own)
        )


@lru_cache(maxsize=256)
def _halves(s: Sizes, again: Recompute, is_first: bool) -> list[tuple[str, Bytes, float]]:
    """(name, kept, passing) of a layer's parts: one where all of it is computed again."""
    if again == "full":
        all_of_it = _sum([saved_tensors.attention(s, is_first), saved_tensors.mlp(s)])
        passing = sum(all_of_it.values()) + saved_tensors.mlp_backward(s)
        return [("", saved_tensors.inputs(s, is_first), passing)]
    passing = saved_tensors.attention_backward(s)
    if again == "selective":
        passing += sum(saved_tensors.core(s).values())
    attention = saved_tensors.attention(s, is_first, keeps_core=again == "none")
    return [
        ("the attention of ", attention, passing),
        ("the MLP of ", saved_tensors.mlp(s), saved_tensors.mlp_backward(s)),
    ]


BUFFERS = ("gradients of others", "what a stage hands on", "matrices of other devices")


def _sum(parts: Iterable[Bytes]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for part in parts:
        for name, size in part.items():
            total[name] += size  # type: ignore[assignment]
    return dict(total)


Situation = tuple[tuple[int, ...], int, frozenset[int]]


@lru_cache(maxsize=4096)
def backward_passes(stage: int, stages: int, micro_batches: int, chunks: int) -> tuple[Situation, ...]:
    """Each different situation in which a backward pass begins. A long step repeats itself after a few rounds.

    Returns:
        (micro-batches kept by each chunk, the chunk that goes back, the chunks whose gradients are there).
    """
    counts, done = [0] * chunks, frozenset[int]()
    found: dict[Situation, None] = {}
    for one in pipeline_schedule.order(stage, stages, min(micro_batches, 3 * stages), chunks):
        if one.is_forward:
            counts[one.chunk] += 1
            continue
        found[tuple(counts), one.chunk, done] = None
        counts[one.chunk] -= 1
        done |= {one.chunk}
    return tuple(one for one in found if not any(_is_within(one, other) for other in found))


def _is_within(one: Situation, other: Situation) -> bool:
    """The same backward pass, with as many micro-batches kept or more, never needs less."""
    more = all(have <= has for have, has in zip(one[0], other[0], strict=True))
    return one != other and one[1:] == other[1:] and more
