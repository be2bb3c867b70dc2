"""Pipeline parallelism: the stages of a group each have some of the layers, and hand micro-batches on.

The first stage has the embedding too, the last the final norm and the head. What a stage hands on is one tensor, the
residual stream after its last layer; backward, its gradient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor

from examples.llama2_13b.parallel.ranks import Ranks
from examples.llama2_13b.parallel.schedule import Schedule, Tick, forward_only, timeline
from examples.llama2_13b.parallel.trace import BUBBLE, COMMUNICATION, COMPUTE, Trace
from fusionkit.parallel.groups import communicator_of
from fusionkit.parallel.parts import own_part
from fusionkit.parallel.pipeline_order import Action, one_forward_one_backward
from fusionkit.parallel.point_to_point import Exchange

UNTRACED = Trace()

# (micro-batch, chunk, what the chunk before has handed on) -> what goes to the next; of the last chunk, the loss.
Forward = Callable[[int, int, Tensor | None], Tensor]


@dataclass(frozen=True)
class PipelineParallel(Ranks):
    """How a model's layers are divided into stages; by default one has all.

    Args:
        group: of the stages, in their order; None is one stage.
        chunks: ranges of layers that each stage has. With more than one, micro-batches go round several times, and
            stages wait less: an interleaved schedule.
    """

    chunks: int = 1

    @property
    def stages(self) -> int:
        return self.size

    @property
    def stage(self) -> int:
        return self.rank

    @property
    def is_first(self) -> bool:
        """Whether this stage has the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage has the head."""
        return self.stage == self.stages - 1

    def layers(self, count: int) -> list[range]:
        """Those of this stage's chunks, of `count` in all.

        Raises:
            ValueError: there are fewer layers than chunks; the nearest degrees are named.
        """
        return self.layers_of(self.stage, count)

    def layers_of(self, stage: int, count: int) -> list[range]:
        """Those of any stage's chunks."""
        return self._divided(count)[stage :: self.stages]

    def stage_of(self, layer: int, count: int) -> int:
        """Who has a layer of `count` in all."""
        return next(place for place, layers in enumerate(self._divided(count)) if layer in layers) % self.stages

    def _divided(self, count: int) -> list[range]:
        """The layers of all chunks in order. The first ones take a layer more: the last has the head beside them."""
        places = self.stages * self.chunks
        if places > count:
            rule = f"at least {places}, one for each of {self.chunks} chunks of {self.stages} stages"
            raise ValueError(f"Llama: num_hidden_layers must be {rule}, got {count}. {self._nearest(count)}")
        parts = [own_part(count, place, places) for place in range(places)]
        return [range(part.start, part.stop) for part in parts]

    def _nearest(self, count: int) -> str:
        """What so many layers suffice for; stages that divide those asked for leave whole copies of the model."""
        stages = max(each for each in range(1, min(self.stages, count) + 1) if self.stages % each == 0)
        chunks = min(self.chunks, count // stages) if stages > 1 else 1
        return f"The nearest is --pipeline_parallel_degree {stages} --virtual_pp_degree {chunks}"

    def ends_with(self, chunk: int) -> bool:
        """Whether the loss comes out of this stage's chunk."""
        return self.is_last and chunk == self.chunks - 1

    def train(
        self, forward: Forward, shapes: Sequence[Sequence[int]], dtype: str, divisor: float, trace: Trace = UNTRACED
    ) -> float:
        """Add the gradients of all losses / divisor to those of the parameters.

        Args:
            forward: of this stage's chunks.
            shapes: of what is handed on, for each micro-batch.
            dtype: of the same.
            trace: of what this stage computes and waits for.

        Returns:
            The sum of the losses, on all stages.
        """
        return self.total(_Step(self, forward, shapes, dtype, divisor, trace).run(one_forward_one_backward))

    @paddle.no_grad()  # type: ignore[untyped-decorator]
    def evaluate(self, forward: Forward, shapes: Sequence[Sequence[int]], dtype: str) -> float:
        """As `train`, without gradients."""
        return self.total(_Step(self, forward, shapes, dtype, None, UNTRACED).run(forward_only))

    def total(self, own: float) -> float:
        """The sum over the stages, on all of them."""
        return own if self.stages == 1 else float(communicator_of(self.group).all_reduce(np.array([own]))[0])

    def share_between_ends(self, parameter: Tensor) -> None:
        """Mark what the first and the last stage both have; of one stage it is an ordinary one. The mark is fleet's."""
        if self.stages > 1:
            parameter.is_firstly_shared = self.is_first

    def sum_of_ends(self, gradient: Tensor) -> Tensor:
        """Of the first and the last stage, the same bits on both: so their updates are the same too."""
        other, peer = paddle.empty_like(gradient), self.stages - 1 if self.is_first else 0
        Exchange([(gradient.contiguous(), peer)], [(other, peer)], self.group).wait()
        return gradient + other


def is_shared(parameter: Tensor) -> bool:
    """Whether another stage has it too."""
    return hasattr(parameter, "is_firstly_shared")


def counts_here(parameter: Tensor) -> bool:
    """What two stages have counts on the first."""
    return bool(getattr(parameter, "is_firstly_shared", True))


def _taken(output: Tensor) -> Tensor:
    """The values of `output`, which keeps its graph alone: its backward pass needs no values.

    Megatron-LM does this, too, as `deallocate_pipeline_outputs`.
    """
    values = output.detach().view(output.shape)  # a tensor of its own; detached ones are emptied with the first
    output._clear_data()
    return values


class _Step:
    """The micro-batches of one step on one stage."""

    def __init__(
        self,
        pipeline: PipelineParallel,
        forward: Forward,
        shapes: Sequence[Sequence[int]],
        dtype: str,
        divisor: float | None,
        trace: Trace,
    ) -> None:
        self._trace = trace
        self._on_the_way: dict[int, Callable[[], None]] = {}  # what tells the trace that an exchange is done
        self._pipeline, self._forward, self._shapes, self._dtype = pipeline, forward, shapes, dtype
        self._divisor = divisor  # None without gradients
        self._arrived: dict[Action, tuple[Tensor, Exchange]] = {}
        self._kept: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = {}  # inputs and graphs, until backward
        self._total = 0.0

    def run(self, schedule: Schedule) -> float:
        pipeline = self._pipeline
        on_the_way: deque[Exchange] = deque()
        for tick in timeline(schedule, pipeline.stage, pipeline.stages, len(self._shapes), pipeline.chunks):
            result = None if tick.action is None else self._compute(tick.action)
            if tick.sends is not None or tick.receives:
                on_the_way.append(self._exchange(tick, result))
            # What has arrived is not held; nor does a stage that is ahead hold more than so many results.
            while on_the_way and (on_the_way[0].is_completed() or len(on_the_way) > pipeline.stages):
                self._wait(on_the_way.popleft())
        for exchange in on_the_way:
            self._wait(exchange)
        return self._total

    def _compute(self, action: Action) -> Tensor | None:
        received, exchange = self._arrived.pop(action, (None, None))
        if exchange is not None:
            with self._trace.span(BUBBLE, "wait for a stage"):
                exchange.wait_received()
        name = f"{'forward' if action.is_forward else 'backward'} {action.micro_batch}"
        with self._trace.span(COMPUTE, name if self._pipeline.chunks == 1 else f"{name}, chunk {action.chunk}"):
            return self._work(action, received)

    def _wait(self, exchange: Exchange) -> None:
        with self._trace.span(BUBBLE, "wait for a stage"):
            exchange.wait()
        self._on_the_way.pop(id(exchange))()

    def _work(self, action: Action, received: Tensor | None) -> Tensor | None:
        return self._go_on(action, received) if action.is_forward else self._go_back(action, received)

    def _go_on(self, action: Action, received: Tensor | None) -> Tensor:
        if received is not None:
            received.stop_gradient = self._divisor is None
        output = self._forward(action.micro_batch, action.chunk, received)
        if self._pipeline.ends_with(action.chunk):
            self._total += float(output)
        if self._divisor is not None:
            self._kept[action.micro_batch, action.chunk] = received, output
        return output.detach() if self._pipeline.ends_with(action.chunk) else _taken(output)

    def _go_back(self, action: Action, gradient: Tensor | None) -> Tensor | None:
        """One backward pass over a micro-batch's graph of one chunk."""
        received, output = self._kept.pop((action.micro_batch, action.chunk))
        if self._pipeline.ends_with(action.chunk):
            (output / self._divisor).backward()
        else:
            output.backward(gradient)
        return None if received is None else received.grad

    def _exchange(self, tick: Tick, result: Tensor | None) -> Exchange:
        sends = [] if tick.sends is None else [(result, tick.sends)]
        receives = []
        for action in tick.receives:
            arriving = paddle.empty(self._shapes[action.micro_batch], self._dtype)
            receives.append((arriving, self._sender(action)))
        finish = self._trace.start(COMMUNICATION, "between stages")
        exchange = Exchange(sends, receives, self._pipeline.group)
        self._on_the_way[id(exchange)] = finish
        for action, (arriving, _) in zip(tick.receives, receives, strict=True):
            self._arrived[action] = arriving, exchange
        return exchange

    def _sender(self, action: Action) -> int:
        stages, step = self._pipeline.stages, -1 if action.is_forward else 1
        return (self._pipeline.stage + step) % stages


ONE_STAGE = PipelineParallel()
