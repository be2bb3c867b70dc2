"""Stage 3 of sharding: copies of the model divide its matrices too. A layer has all of its own only while it computes.

A matrix stays with its owner, who updates it. Before a layer computes, forward or backward, the other ranks get its
matrices from the owners. Those of the layer that computes next are on their way meanwhile. So a rank has its own
matrices, and of the others those of two layers at most. Norms are on all ranks.

All ranks of the group go through the same layers in the same order, or they would wait for each other. A copy that has
fewer micro-batches than another goes through some without a target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor, nn

from examples.llama2_13b.parallel.sharding import Sharding
from examples.llama2_13b.parallel.trace import COMMUNICATION, EXPOSED, Trace
from fusionkit.parallel import collectives


@dataclass(frozen=True)
class Turn:
    """When a layer computes.

    Args:
        layer: whose matrices are needed.
        methods: one of which is called then.
        looks_up: the backward pass needs no values of the matrix.
        again: the layer computes a second time, with gradients, just before its backward pass.
    """

    layer: nn.Layer
    methods: tuple[str, ...] = ("forward",)
    looks_up: bool = False
    again: bool = False


class DividedLayers:
    """Has layers compute with all of their matrices, and keeps what this rank owns in between.

    The graph of the forward pass refers to a parameter, not to its memory. So the memory may go after the forward pass,
    and be another one in the backward pass.

    Args:
        sharding: who divides the matrices.
        parameters: all that have owners.
        chunks: turns in their order; between chunks other ranks compute.
    """

    def __init__(self, sharding: Sharding, parameters: Sequence[Tensor], chunks: Sequence[Sequence[Turn]]) -> None:
        for parameter, owner in zip(parameters, sharding.owners(parameters), strict=True):
            if parameter.ndim == 2:
                parameter.kept_by = owner
        self.trace = Trace()  # one that is off, until a run gives its own
        self._whole: list[_Matrices] = []
        layers = {id(turn.layer): turn.layer for turns in chunks for turn in turns}  # a tied head has two turns
        matrices = {key: _Matrices(sharding, layer) for key, layer in layers.items()}
        for turns in chunks:
            places = [matrices[id(turn.layer)] for turn in turns]
            for place, turn in enumerate(turns):
                back = [places[each] for each in (place, place - 1) if each >= 0 and not turns[each].looks_up]
                is_last = place + 1 == len(turns)  # its backward pass comes next
                on = back if is_last else places[place : place + 2]
                for method in turn.methods:
                    setattr(turn.layer, method, self._with_matrices(getattr(turn.layer, method), turn, on, back))

    def divide(self) -> None:
        """Keep what this rank owns. What it has of others is out of date after an update."""
        self._have([])

    def _with_matrices(
        self, compute: Callable[..., Any], turn: Turn, on: list[_Matrices], back: list[_Matrices]
    ) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self._have(back if turn.again and paddle.is_grad_enabled() else on)
            result = compute(*args)
            for output in result if isinstance(result, tuple) else (result,):
                if not (turn.looks_up or output.stop_gradient):
                    output.register_hook(lambda _: self._have(back))  # before all else of this layer's backward pass
            return result

        return run

    def _have(self, wanted: list[_Matrices]) -> None:
        """The first of these whole, the other on its way, and no more."""
        for matrices in self._whole:
            if matrices not in wanted:
                matrices.divide()
        self._whole = wanted
        for matrices in wanted:
            matrices.start(self.trace)
        if wanted:
            with self.trace.span(EXPOSED, "wait for matrices"):
                wanted[0].wait()


class _Matrices:
    """Those of one layer."""

    def __init__(self, sharding: Sharding, layer: nn.Layer) -> None:
        self._sharding = sharding
        self._parameters = [parameter for parameter in layer.parameters() if parameter.ndim == 2]
        self._works: list[Any] | None = []  # on their way; None while they are divided
        self._arrive: Callable[[], None] | None = None  # tells the trace that they have come
        self.divide()

    def start(self, trace: Trace) -> None:
        """Get those of other ranks, and send one's own."""
        if self._works is None:
            self._arrive = trace.start(COMMUNICATION, "matrices")
            self._works = [self._broadcast(parameter) for parameter in self._parameters]

    def _broadcast(self, parameter: Tensor) -> Any:
        if not self._sharding.has(parameter):
            paddle.empty(parameter.shape, parameter.dtype)._share_buffer_to(parameter)
        return collectives.start_broadcast(parameter, parameter.kept_by, self._sharding.group)

    def wait(self) -> None:
        for work in self._works or ():
            work.wait()
        self._works = []
        if self._arrive is not None:
            self._arrive()
            self._arrive = None

    def divide(self) -> None:
        self.wait()
        for parameter in self._parameters:
            if not self._sharding.has(parameter):
                parameter._clear_data()
        self._works = None
