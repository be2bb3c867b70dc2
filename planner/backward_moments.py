"""The moment of a step's backward passes at which a device of a pipeline stage needs most memory.

Every backward pass is looked at module by module, at two moments: while the module runs, and when its own values have
gone. A step repeats itself, so only the situations that differ count. All moments of a stage are computed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from fusionkit_planner import pipeline_schedule
from fusionkit_planner.saved_tensors import Bytes
from numpy.typing import NDArray

# Of gradients, from stage 2 of sharding on: bytes from which neighbours travel as one, and how many do at one time.
BUCKET, ON_THE_WAY = 10e6, 2

Array = NDArray[np.float64]
Situation = tuple[tuple[int, ...], int, frozenset[int]]


@dataclass(frozen=True)
class Module:
    """A part of a chunk in a backward pass. Equal layers share theirs.

    Args:
        is_of_layer: what `name` lacks is the layer's number.
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
    is_of_layer: bool = False


@dataclass(frozen=True)
class Gradients:
    """What a device has of its weights' gradients while they grow.

    Args:
        owned: bytes of those that its optimizer reads.
        ranks: that divide the sums, from stage 2 of sharding on; else 1.
        largest, total: bytes of the largest gradient, and of all.
    """

    owned: float
    ranks: int
    largest: float
    total: float

    def parts(self, before: Array, grown: Array, is_again: NDArray[np.bool_]) -> tuple[Array, Array]:
        """(own, others') bytes of earlier passes, and of this one so far.

        A device that divides them keeps the sums that it owns. The others' leave in buckets: one that is not full waits
        for each owner, and some travel.

        Args:
            before, grown: bytes of earlier passes, and of this one.
            is_again: this chunk has had a backward pass before, so that nothing new is made.
        """
        held = before + np.where(is_again, 0.0, grown)
        if self.ranks == 1:
            return np.minimum(held, self.owned), np.maximum(0.0, held - self.owned)
        own, others = np.where(before > 0, self.owned, np.minimum(grown, self.owned)), grown * (1 - 1 / self.ranks)
        waiting = np.minimum(others, self.ranks * BUCKET)
        travels = ON_THE_WAY * min(max(BUCKET, self.largest), self.total / self.ranks)
        return own, waiting + np.where(before > 0, travels, np.minimum(others - waiting, travels))


@dataclass(frozen=True)
class Moment:
    """Of a backward pass.

    Args:
        total: bytes beside parameters and the optimizer's moments.
        counts: micro-batches that each chunk keeps, whole.
        chunk, module: where the backward pass stands; -1, -1 while the optimizer updates.
        own, others: bytes of gradients.
        is_over: the module's own values have gone, and its gradients are there.
    """

    total: float
    counts: tuple[int, ...] = ()
    chunk: int = -1
    module: int = -1
    own: float = 0.0
    others: float = 0.0
    is_over: bool = False


class Chunks:
    """The modules of each chunk of a stage, and sums along its backward passes."""

    def __init__(self, modules: Sequence[Sequence[Module]]) -> None:
        self.modules = modules
        self.sizes = tuple(map(len, modules))
        back = [module for chunk in modules for module in chunk[::-1]]
        kept = {key: sum(module.kept.values()) for key, module in {id(module): module for module in back}.items()}
        self.kept, self.gone = self._sums([kept[id(module)] for module in back])
        self.gradients, self.grown = self._sums([module.gradients for module in back])
        borrowed = np.array([module.borrowed for module in back])
        self.beside = _in_turn(borrowed + np.array([module.passing for module in back]), borrowed)

    def _sums(self, sizes: Sequence[float]) -> tuple[Array, Array]:
        """(of each chunk; along each backward pass before a module and after it, in turn)."""
        each = np.array(sizes, dtype=float)
        after = np.cumsum(each)
        ends = np.cumsum(self.sizes) - 1
        whole = after[ends]
        whole[1:] -= whole[:-1].copy()
        after -= np.repeat(after[ends] - whole, self.sizes)
        return whole, _in_turn(after - each, after)


def _in_turn(one: Array, other: Array) -> Array:
    found = np.empty(2 * len(one))
    found[::2], found[1::2] = one, other
    return found


@dataclass(frozen=True)
class _Moments:
    """Which moments a stage's backward passes have.

    Args:
        counts, done: [situations, chunks]; micro-batches kept, and whether the chunk's gradients are there.
        situation, place: [moments]; of each the situation, and its place in the arrays of `Chunks`.
    """

    situations: tuple[Situation, ...]
    counts: Array
    done: Array
    situation: NDArray[np.intp]
    place: NDArray[np.intp]
    is_again: NDArray[np.bool_]


@lru_cache(maxsize=1024)
def _moments(stage: int, stages: int, micro_batches: int, sizes: tuple[int, ...]) -> _Moments:
    situations = backward_passes(stage, stages, micro_batches, len(sizes))
    starts = np.cumsum([0, *(2 * size for size in sizes)])
    places = [np.arange(starts[chunk], starts[chunk + 1]) for _, chunk, _ in situations]
    situation = np.repeat(np.arange(len(situations)), [len(each) for each in places])
    return _Moments(
        situations,
        np.array([counts for counts, _, _ in situations], dtype=float),
        np.array([[chunk in done for chunk in range(len(sizes))] for _, _, done in situations], dtype=float),
        situation,
        np.concatenate(places),
        np.array([chunk in done for _, chunk, done in situations])[situation],
    )


def worst(stage: int, stages: int, micro_batches: int, chunks: Chunks, gradients: Gradients, sent: float) -> Moment:
    """The first of those that need most.

    Args:
        sent: bytes of the last output, which is on its way.
    """
    found = _moments(stage, stages, min(micro_batches, 3 * stages), chunks.sizes)
    before = (found.done @ chunks.gradients)[found.situation]
    own, others = gradients.parts(before, chunks.grown[found.place], found.is_again)
    now = sent + (found.counts @ chunks.kept)[found.situation] - chunks.gone[found.place]
    totals = now + own + others + chunks.beside[found.place]
    first = int(totals.argmax())
    if totals[first] <= gradients.owned:
        return Moment(gradients.owned, own=gradients.owned)
    counts, chunk, _ = found.situations[found.situation[first]]
    passed, is_over = divmod(int(found.place[first]) - 2 * sum(chunks.sizes[:chunk]), 2)
    module = chunks.sizes[chunk] - 1 - passed
    return Moment(float(totals[first]), counts, chunk, module, float(own[first]), float(others[first]), bool(is_over))


@lru_cache(maxsize=4096)
def backward_passes(stage: int, stages: int, micro_batches: int, chunks: int) -> tuple[Situation, ...]:
    """Each different situation in which a backward pass begins. A long step repeats itself after a few rounds.

    Returns:
        (micro-batches kept by each chunk, the chunk that goes back, the chunks whose gradients are there).
    """
    counts, done = [0] * chunks, frozenset[int]()
    found: dict[tuple[int, frozenset[int]], dict[tuple[int, ...], None]] = {}
    for one in pipeline_schedule.order(stage, stages, min(micro_batches, 3 * stages), chunks):
        if one.is_forward:
            counts[one.chunk] += 1
            continue
        found.setdefault((one.chunk, done), {})[tuple(counts)] = None
        counts[one.chunk] -= 1
        done |= {one.chunk}
    return tuple((each, *key) for key, every in found.items() for each in _fullest(list(every)))


def _fullest(every: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Without those that another exceeds: the same backward pass with more micro-batches kept never needs less."""
    return [one for one in every if not any(_is_within(one, other) for other in every)]


def _is_within(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one != other and all(have <= has for have, has in zip(one, other, strict=True))
