"""What a device holds of the weights: elements of each, and which copy of the model updates them."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from fusionkit_planner.architecture import Architecture


@dataclass(frozen=True)
class Weight:
    """A parameter's part on one device.

    Args:
        module: "embedding", "head", or a layer's half: "attention", "mlp".
        layer: its number; -1 at the ends.
        is_matrix: sharding of stage 3 leaves it with its owner.
    """

    module: str
    layer: int
    elements: int
    is_matrix: bool


@lru_cache(maxsize=1024)
def of_stage(
    architecture: Architecture, tensor: int, layers: tuple[int, ...], has: tuple[bool, bool]
) -> tuple[Weight, ...]:
    """In the order of the model, on the first rank of tensor.

    Args:
        layers: numbers of the stage's layers.
        has: whether the stage has the embedding, and the head.
    """
    a, hidden = architecture, architecture.hidden_size
    vocabulary = -(-a.vocab_size // tensor) * hidden
    found = [Weight("embedding", -1, vocabulary, True)] if has[0] else []
    for number in layers:
        found += [
            Weight("attention", number, hidden, False),
            Weight("attention", number, hidden * (a.queries + 2 * a.keys) // tensor, True),
            Weight("attention", number, a.queries * hidden // tensor, True),
            Weight("mlp", number, hidden, False),
            Weight("mlp", number, hidden * a.widened // tensor, True),
            Weight("mlp", number, a.intermediate_size * hidden // tensor, True),
        ]
    if has[1]:
        found.append(Weight("head", -1, hidden, False))
        if not (a.is_tied and has[0]):
            found.append(Weight("head", -1, vocabulary, True))
    return tuple(found)


@lru_cache(maxsize=1024)
def elements(
    architecture: Architecture, tensor: int, layers: tuple[int, ...], has: tuple[bool, bool]
) -> Counter[tuple[str, int]]:
    """By module and layer, of what `of_stage` gives."""
    found: Counter[tuple[str, int]] = Counter()
    for one in of_stage(architecture, tensor, layers, has):
        found[one.module, one.layer] += one.elements
    return found


@lru_cache(maxsize=1024)
def owned(
    architecture: Architecture, tensor: int, layers: tuple[int, ...], has: tuple[bool, bool], ranks: int
) -> tuple[bool, ...]:
    """Which of `of_stage`'s the rank with most to update owns: whole, from the largest to the rank that has least."""
    weights = of_stage(architecture, tensor, layers, has)
    loads = [(0, rank) for rank in range(ranks)]
    owners = [0] * len(weights)
    for place in sorted(range(len(weights)), key=lambda place: -weights[place].elements):
        load, rank = loads[0]
        owners[place] = rank
        heapq.heapreplace(loads, (load + weights[place].elements, rank))
    _, most = max((load, -rank) for load, rank in loads)
    return tuple(owner == -most for owner in owners)
