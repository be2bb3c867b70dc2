"""The modules of a pipeline stage's chunks, with the bytes that each keeps, needs and borrows in a backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from fusionkit_planner import saved_tensors, weights
from fusionkit_planner.architecture import Architecture
from fusionkit_planner.backward_moments import Chunks, Module
from fusionkit_planner.layout import Recompute
from fusionkit_planner.saved_tensors import FLOAT32, Bytes, Sizes


@dataclass(frozen=True)
class Place:
    """Where a device stands in a model.

    Args:
        tensor: ranks that divide each layer.
        layers: numbers, by chunk.
        is_first, is_last: whether the stage has the embedding, and the head.
    """

    architecture: Architecture
    tensor: int
    layers: tuple[range, ...]
    is_first: bool
    is_last: bool

    @cached_property
    def weights(self) -> tuple[Architecture, int, tuple[int, ...], tuple[bool, bool]]:
        """By which `fusionkit_planner.weights` finds them."""
        numbers = tuple(number for layers in self.layers for number in layers)
        return self.architecture, self.tensor, numbers, (self.is_first, self.is_last)


@lru_cache(maxsize=4096)
def chunks(place: Place, sizes: Sizes, again: Recompute, lenders: int) -> Chunks:
    """Of a stage, each in the order of the forward pass.

    Args:
        lenders: devices each of which alone has some matrices between passes; 1 if all have all.
    """
    built = _Builder(place, sizes, again, lenders)
    return Chunks([built.modules(chunk) for chunk in range(len(place.layers))])


def name(place: Place, found: Chunks, chunk: int, module: int) -> str:
    """Of a module, in words. Those of layers stand in their order, equally many of each."""
    modules, layers = found.modules[chunk], place.layers[chunk]
    if not modules[module].is_of_layer:
        return modules[module].name
    of_layers = [place for place, one in enumerate(modules) if one.is_of_layer]
    number = layers[of_layers.index(module) * len(layers) // len(of_layers)]
    return f"{modules[module].name} {number}"


class _Builder:
    def __init__(self, place: Place, sizes: Sizes, again: Recompute, lenders: int) -> None:
        self.place, self.sizes, self.again = place, sizes, again
        self.elements = weights.elements(*place.weights)
        self.lent: dict[int, int] = {}  # elements of matrices of other devices, by layer; -1 is the head
        self.layers: dict[tuple[bool, float], list[Module]] = {}  # equal ones are built once
        self.inner: dict[int, list[Module]] = {}  # likewise chunks without an end of the model, by their layers
        if lenders > 1:
            owned = weights.owned(*place.weights, lenders)
            for one, is_own in zip(weights.of_stage(*place.weights), owned, strict=True):
                if one.is_matrix and not is_own and one.module != "embedding":
                    self.lent[one.layer] = self.lent.get(one.layer, 0) + one.elements

    def modules(self, chunk: int) -> list[Module]:
        place, layers = self.place, self.place.layers[chunk]
        has_end = (place.is_first and chunk == 0) or (place.is_last and chunk == len(place.layers) - 1)
        if has_end or self.lent:
            return self._modules(chunk)
        if len(layers) not in self.inner:
            self.inner[len(layers)] = self._modules(chunk)
        return self.inner[len(layers)]

    def _modules(self, chunk: int) -> list[Module]:
        s, layers, place = self.sizes, self.place.layers[chunk], self.place
        found = self._all_layers(layers) if layers else []
        if place.is_first and chunk == 0:
            own = self._gradients("embedding", -1)
            found.insert(0, Module("the embedding", saved_tensors.embedding(s), own, own, self._borrowed(layers[:1])))
        if place.is_last and chunk == len(place.layers) - 1:
            own = self._gradients("head", -1)
            found.append(Module("the head", saved_tensors.head(s), 0.0, own, self._borrowed([-1, *layers[-1:]])))
        elif not (place.is_first and place.is_last):
            found.append(Module("what a stage hands on", {}, s.stream, 0.0, self._borrowed(layers[-2:])))
        return found

    def _all_layers(self, layers: range) -> list[Module]:
        found = list(self._layer(layers.start, True, self._borrowed(layers[:1])))
        if not self.lent:
            return found + self._layer(layers.start, False, 0.0) * (len(layers) - 1)
        for before, number in pairwise(layers):
            found += self._layer(number, False, self._borrowed([before, number]))
        return found

    def _layer(self, number: int, is_first: bool, borrowed: float) -> list[Module]:
        """Layers have weights of the same sizes, so those that borrow as much are equal."""
        if (is_first, borrowed) not in self.layers:
            attention, mlp = self._gradients("attention", number), self._gradients("mlp", number)
            halves = _halves(self.sizes, self.again, is_first)
            gradients = (attention + mlp,) if len(halves) == 1 else (attention, mlp)
            self.layers[is_first, borrowed] = [
                Module(half, kept, passing, own, borrowed, is_of_layer=True)
                for (half, kept, passing), own in zip(halves, gradients, strict=True)
            ]
        return self.layers[is_first, borrowed]

    def _gradients(self, module: str, layer: int) -> float:
        return float(FLOAT32 * self.elements[module, layer])

    def _borrowed(self, layers: Iterable[int]) -> float:
        return float(FLOAT32 * sum([self.lent.get(layer, 0) for layer in layers])) if self.lent else 0.0


@lru_cache(maxsize=256)
def _halves(s: Sizes, again: Recompute, is_first: bool) -> list[tuple[str, Bytes, float]]:
    """(name, kept, passing) of a layer's parts: one where all of it is computed again."""
    if again == "full":
        all_of_it = total([saved_tensors.attention(s, is_first), saved_tensors.mlp(s)])
        passing = sum(all_of_it.values()) + saved_tensors.mlp_backward(s)
        return [("layer", saved_tensors.inputs(s, is_first), passing)]
    passing = saved_tensors.attention_backward(s)
    if again == "selective":
        passing += sum(saved_tensors.core(s).values())
    attention = saved_tensors.attention(s, is_first, keeps_core=again == "none")
    return [
        ("the attention of layer", attention, passing),
        ("the MLP of layer", saved_tensors.mlp(s), saved_tensors.mlp_backward(s)),
    ]


def total(parts: Iterable[Bytes]) -> dict[str, float]:
    """Bytes by name."""
    found: dict[str, float] = {}
    for part in parts:
        for name, size in part.items():
            found[name] = found.get(name, 0.0) + size
    return found
