"""Where a loss or a gradient that is not finite came from: the step is computed again under hooks, after the fault."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import paddle
from paddle import Tensor

from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.pipeline import Forward, PipelineParallel

NOWHERE = (math.inf,) * 3
# (chunks of a stage, shapes of what they hand on, its dtype): of a step's micro-batches on this process.
Work = tuple[Forward, Sequence[Sequence[int]], str]


def origin(model: Llama, mesh: Mesh, work: Work, divisor: float, draw_again: Callable[[], None]) -> str:
    """The first value that is not finite and the rank that computed it, in words, the same on all processes.

    Forward that is a layer's input or output. Where all of those are finite it is a parameter's gradient, from the last
    layer on. All processes call this alike, with the parameters of the step; gradients are lost.

    Args:
        work, divisor: as the step had them.
        draw_again: sets the random numbers of the step.
    """
    for parameter in model.parameters():
        parameter.grad = None
    broken = _broken_parameter(model)
    for search in (_forward, _backward):
        draw_again()
        order, text = search(model, mesh.pipeline, work, divisor)
        orders = mesh.gathered((*order, not broken))  # of ranks that find it at once, whose weights did it
        if min(orders)[0] < math.inf:
            rank = orders.index(min(orders))
            return f"on rank {rank} {mesh.texts_of_all(text + broken)[rank]}"
    return "computed again all layers and gradients are, so a sum of them was too large, or a processor was wrong"


def _forward(model: Llama, pipeline: PipelineParallel, work: Work, divisor: float) -> tuple[Sequence[float], str]:
    forward, shapes, dtype = work
    watch = _Watch(pipeline)
    with watch.over(model):
        pipeline.evaluate(partial(watch.run, forward), shapes, dtype)
    return watch.order, watch.text


class _Watch:
    """Looks at what goes into and comes out of every layer, in the order in which it is computed."""

    def __init__(self, pipeline: PipelineParallel) -> None:
        self.order: tuple[float, ...] = NOWHERE
        self.text = ""
        self._pipeline = pipeline
        self._micro_batch = self._place = self._looks = 0

    @contextmanager
    def over(self, model: Llama) -> Iterator[None]:
        hooks = []
        for name, layer in model.named_sublayers():
            hooks.append(layer.register_forward_pre_hook(partial(self._look_at_input, name)))
            hooks.append(layer.register_forward_post_hook(partial(self._look_at_output, name)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def run(self, forward: Forward, micro_batch: int, chunk: int, received: Tensor | None) -> Tensor:
        self._micro_batch, self._place = micro_batch, chunk * self._pipeline.stages + self._pipeline.stage
        result = forward(micro_batch, chunk, received)
        is_loss = self._pipeline.ends_with(chunk)
        self._look([result], "the loss of the output of lm_head" if is_loss else "what the stage hands on")
        return result

    def _look_at_input(self, name: str, layer: Any, inputs: Any) -> None:
        self._look(inputs, f"the input of {name}")

    def _look_at_output(self, name: str, layer: Any, inputs: Any, outputs: Any) -> None:
        self._look(outputs if isinstance(outputs, tuple | list) else [outputs], f"the output of {name}")

    def _look(self, values: Any, what: str) -> None:
        self._looks += 1
        order = self._micro_batch, self._place, self._looks
        # Interleaved, a later micro-batch's first chunk comes before an earlier one's second.
        if order < self.order and not all(map(is_finite, values)):
            self.order = order
            self.text = f"{what} in micro-batch {self._micro_batch}"


def _backward(model: Llama, pipeline: PipelineParallel, work: Work, divisor: float) -> tuple[Sequence[float], str]:
    """Each gradient is dropped when it has been looked at: with sharding there may be no room for all."""
    watched = {name: one for name, one in model.named_parameters() if not one.stop_gradient}
    broken = set()

    def look(name: str) -> None:
        if name in watched:
            if not is_finite(watched[name].grad):
                broken.add(name)
            watched[name].grad = None

    for name, parameter in watched.items():
        parameter._register_backward_hook(partial(look, name))
    pipeline.train(*work, divisor)
    watched.clear()  # the hooks cannot be removed
    last = [name for name in reversed(model.table) if name in broken]
    if not last:
        return NOWHERE, ""
    return (-list(model.table).index(last[0]), 0, 0), f"the gradient of {last[0]}"


def _broken_parameter(model: Llama) -> str:
    """Updates are of finite numbers, so such a parameter came out of a model folder. A rank looks at what it keeps."""
    kept = {name: parameter for name, parameter in model.named_parameters() if model.sharding.has(parameter)}
    found = [name for name, parameter in kept.items() if not is_finite(parameter)]
    return f" after the parameter {found[0]}" if found else ""


def is_finite(value: Any) -> bool:
    """Of all elements; what has no fractions is."""
    if not isinstance(value, Tensor) or not paddle.is_floating_point(value):
        return True
    return bool(paddle.isfinite(value.cast("float32")).all())
