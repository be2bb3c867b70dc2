"""The time of a training step, in parts, from a machine's rates. Simulated: nothing here is a measurement.

Source of the overlap of products with collectives: the bounds of docs/mc2.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from fusionkit_planner import passes, pipeline_schedule
from fusionkit_planner.architecture import Architecture
from fusionkit_planner.layout import Layout, Recompute
from fusionkit_planner.passes import Collective, Matrix, Work
from fusionkit_planner.pipeline_schedule import Durations
from fusionkit_planner.rates import Rates
from fusionkit_planner.system import FUSIONKIT, System

from fusionkit.parallel.chunks import most_chunks


class Machine(Hashable, Protocol):
    """What a machine takes, in seconds. `Rates` is one."""

    def product_seconds(self, rows: int, in_features: int, out_features: int) -> float: ...
    def attention_seconds(self, flops: float) -> float: ...
    def traffic_seconds(self, work: Work, system: System) -> float: ...
    def update_seconds(self, elements: float, system: System) -> float: ...
    def waiting_seconds(self, kernels: float, collectives: int, busy: float) -> float: ...
    def gather_seconds(self, devices: int, num_bytes: float, stride: int = 1) -> float: ...
    def all_reduce_seconds(self, devices: int, num_bytes: float, stride: int = 1) -> float: ...
    def send_seconds(self, num_bytes: float, distance: int) -> float: ...
    def share_links(self, devices: int, others: int) -> bool: ...


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, simulated. The parts add up to `seconds`.

    Args:
        compute: of the busiest stage's kernels, what it computes again included.
        exposed_communication: collectives and messages that nothing hides.
        bubble: the busiest stage waits for others.
        optimizer: the update.
        other: launches that the device waits for.
    """

    seconds: float
    compute: float
    exposed_communication: float
    bubble: float
    optimizer: float
    other: float

    def tokens_per_device(self, layout: Layout, sequence: int) -> float:
        """Tokens/s/device."""
        return layout.global_batch * sequence / layout.devices / self.seconds

    def mfu(self, architecture: Architecture, layout: Layout, sequence: int, rates: Rates) -> float:
        """Model FLOPs utilisation: of the peak, without what is computed again."""
        flops = architecture.flops_of_token(sequence) * self.tokens_per_device(layout, sequence)
        return flops / rates.peak_flops


@dataclass(frozen=True)
class PassTime:
    """Seconds of a pass on one device; launches count where the device waits for them.

    Args:
        sending: of `compute` and `exposed`, those in which collectives of tensor or context move.
    """

    compute: float = 0.0
    exposed: float = 0.0
    launches: float = 0.0
    sending: float = 0.0

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed + self.launches

    def __add__(self, other: PassTime) -> PassTime:
        return PassTime(
            self.compute + other.compute,
            self.exposed + other.exposed,
            self.launches + other.launches,
            self.sending + other.sending,
        )

    def __mul__(self, count: float) -> PassTime:
        return PassTime(count * self.compute, count * self.exposed, count * self.launches, count * self.sending)


@dataclass(frozen=True)
class Pieces:
    """Of one micro-batch, on one device of any stage; and of the end of a step.

    Args:
        layer, embedding, head: (forward, backward).
        send: to the next stage.
    """

    layer: tuple[PassTime, PassTime]
    embedding: tuple[PassTime, PassTime]
    head: tuple[PassTime, PassTime]
    send: float


@dataclass(frozen=True)
class Exchange:
    """Seconds of what the copies of the model send each other, alone.

    Args:
        beside: sums of gradients, and in stage 3 of sharding the matrices: passes may run meanwhile.
        after: sums over data of what an owner has, and the new values of the others: no pass runs then.
    """

    beside: float
    after: float

    @property
    def seconds(self) -> float:
        return self.beside + self.after


def step(
    architecture: Architecture, layout: Layout, sequence: int, rates: Machine, system: System = FUSIONKIT
) -> StepTime:
    """Price one step."""
    run = _pipeline(
        architecture.num_hidden_layers, cut_of(layout), pieces(architecture, layout, sequence, rates, system)
    )
    work = run.work * layout.micro_batches
    sent = gradients(architecture, layout, rates, system)
    hidden = 0.0
    if sent.beside and system.hides_gradients:
        hidden = min(sent.beside, hideaway(layout, free_links(run.chunks, layout, rates, system)))
    optimizer = rates.update_seconds(weights(architecture, layout) / owners(layout), system)
    exposed = sent.seconds - hidden
    return StepTime(
        seconds=run.seconds + exposed + optimizer,
        compute=work.compute,
        exposed_communication=work.exposed + exposed,
        bubble=run.seconds - work.seconds,
        optimizer=optimizer,
        other=work.launches,
    )


@dataclass(frozen=True)
class Run:
    """A step's passes.

    Args:
        seconds: until the last stage is done.
        chunks: (forward, backward) of the busiest stage's chunks.
    """

    seconds: float
    chunks: tuple[tuple[PassTime, PassTime], ...]

    @property
    def work(self) -> PassTime:
        """Of a micro-batch."""
        return sum((f + b for f, b in self.chunks), PassTime())


def cut_of(layout: Layout) -> Layout:
    """What a pipeline's schedule depends on, and no more: layouts that differ in sharding alone share one replay."""
    return Layout(pipeline=layout.pipeline, virtual_stages=layout.virtual_stages, micro_batches=layout.micro_batches)


@lru_cache(maxsize=4096)
def _pipeline(layers: int, layout: Layout, cut: Pieces) -> Run:
    stages = stage_passes(layers, layout, cut)
    durations = [
        Durations(tuple(f.seconds for f, _ in chunks), tuple(b.seconds for _, b in chunks)) for chunks in stages
    ]
    seconds = pipeline_schedule.seconds(durations, layout.micro_batches, cut.send)
    busiest = max(range(len(stages)), key=lambda stage: durations[stage].work)
    return Run(seconds, tuple(stages[busiest]))


def pieces(architecture: Architecture, layout: Layout, sequence: int, rates: Machine, system: System) -> Pieces:
    """What a layer, the ends of the model and a message take. They do not depend on how stages are filled."""
    ways = _priced(architecture, shape_of(layout), layout.recompute, sequence, rates, system)
    if layout.pipeline == 1:
        return Pieces(*ways, 0.0)
    sent = passes.ELEMENT * passes.tokens(layout, sequence) * architecture.hidden_size
    divides = layout.sequence_parallel or system.divides_sends
    return Pieces(
        *ways, rates.send_seconds(sent / (layout.tensor if divides else 1), distance_of_stages(layout, system))
    )


BothWays = tuple[PassTime, PassTime]


@lru_cache(maxsize=1024)
def _priced(
    architecture: Architecture, shape: Layout, recompute: Recompute, sequence: int, rates: Machine, system: System
) -> tuple[BothWays, BothWays, BothWays]:
    """(forward, backward) of a layer, of the embedding and of the head."""
    given = (architecture, shape, sequence, system)

    def price(work: Work) -> PassTime:
        return price_of(work, shape, rates, system)

    forward = passes.layer_forward(*given)
    ahead, back = price(forward), price(passes.layer_backward(*given))
    if recompute == "full":
        back = back + ahead
    elif recompute == "selective":
        back = back + price(replace(forward, products=(), num_bytes=0.0, kernels=0.2 * forward.kernels))
    embedding = price(passes.embedding_forward(*given)), price(passes.embedding_backward(*given))
    return (ahead, back), embedding, (price(passes.head_forward(*given)), price(passes.head_backward(*given)))


def shape_of(layout: Layout) -> Layout:
    """What a pass's work depends on, and no more, so that it is computed once for all layouts that share it."""
    return Layout(
        tensor=layout.tensor,
        context=layout.context,
        micro_batch=layout.micro_batch,
        sequence_parallel=layout.sequence_parallel,
    )


def stage_passes(layers: int, layout: Layout, cut: Pieces) -> list[list[tuple[PassTime, PassTime]]]:
    """(forward, backward) of each chunk of each stage; the ends have the embedding and the head."""
    found = []
    for stage in range(layout.pipeline):
        counts = layout.layers_of(stage, layers)
        found.append([(cut.layer[0] * count, cut.layer[1] * count) for count in counts])
    for (stage, chunk), ends in (((0, 0), cut.embedding), ((-1, -1), cut.head)):
        f, b = found[stage][chunk]
        found[stage][chunk] = (f + ends[0], b + ends[1])
    return found


def price_of(work: Work, layout: Layout, rates: Machine, system: System) -> PassTime:
    """A pass: kernels one after the other, and what their collectives take beyond them."""
    compute, collectives = 0.0, int(bool(work.collective))
    sending = exposed = _collective(work.collective, work.sent_bytes, layout, rates)
    for product in work.products:
        alone = rates.product_seconds(product.rows, product.in_features, product.out_features)
        sent = _collective(product.collective, product.sent_bytes, layout, rates)
        compute, sending, collectives = compute + alone, sending + sent, collectives + bool(product.collective)
        exposed += _exposed(product, alone, sent, layout, system)
    compute += rates.attention_seconds(work.score_flops)
    compute += rates.traffic_seconds(work, system)
    if layout.context > 1 and work.gathered_bytes:
        gathered = rates.gather_seconds(layout.context, work.gathered_bytes, layout.tensor)
        beyond = gathered - rates.attention_seconds(work.score_flops) * (1 - 1 / layout.context)
        exposed += beyond * (beyond > 0)
        sending, collectives = sending + gathered, collectives + 1
    waiting = rates.waiting_seconds(work.kernels, collectives, compute + exposed)
    return PassTime(compute, exposed, waiting, sending)


def _collective(name: Collective, num_bytes: float, layout: Layout, rates: Machine) -> float:
    """Alone, between ranks of tensor."""
    if not name:
        return 0.0
    price = rates.all_reduce_seconds if name == "all_reduce" else rates.gather_seconds
    return price(layout.tensor, num_bytes)


def _exposed(product: Matrix, alone: float, collective: float, layout: Layout, system: System) -> float:
    """By the bounds of docs/mc2.md: one chunk of the product, or of a sum, has nothing to run beside it."""
    if not product.collective or not system.hides_tensor:
        return collective
    chunks = most_chunks(product.rows // layout.tensor, int(product.sent_bytes / product.rows))
    if product.collective == "all_reduce":
        return max(collective / chunks, collective - alone * (1 - 1 / chunks))
    return max(0.0, collective - alone * (1 - 1 / (layout.tensor * chunks)))


def weights(architecture: Architecture, layout: Layout) -> float:
    """Elements of the largest stage on one device, as far as layers divide evenly. The first has no fewer layers."""
    layers = sum(layout.layers_of(0, architecture.num_hidden_layers))
    ends = (2 if layout.pipeline == 1 and not architecture.is_tied else 1) * architecture.vocab_size
    return (layers * architecture.parameters_of_layer + ends * architecture.hidden_size) / layout.tensor


def owners(layout: Layout) -> int:
    """Devices that divide the optimizer's work on the same weights."""
    return layout.sharding * layout.context if layout.stage >= 1 else 1


def gradients(architecture: Architecture, layout: Layout, rates: Machine, system: System) -> Exchange:
    """Of a step. Each owner's sum is that of its sharding ranks first, and then of their like along data.

    In the end the two stages with a tied embedding add theirs.
    """
    count, stride = weights(architecture, layout), layout.tensor
    near, owning = layout.sharding * layout.context, owners(layout)
    outside = layout.pipeline if system.data_is_outermost else 1
    sent, tied = system.sent_gradient_bytes * count, _tied_sum(architecture, layout, rates, system)
    if owning == 1:
        return Exchange(rates.all_reduce_seconds(near * layout.data, sent, stride * outside), tied)
    summed = (layout.micro_batches if layout.stage >= 2 else 1) * rates.gather_seconds(near, sent, stride)
    over_data = rates.all_reduce_seconds(layout.data, sent / owning, stride * near * outside)
    back = rates.gather_seconds(owning, system.sent_parameter_bytes * count, stride)
    if layout.stage == 3:
        return Exchange(summed + 2 * layout.micro_batches * back, over_data + tied)
    return Exchange(summed, over_data + back + tied)


def _tied_sum(architecture: Architecture, layout: Layout, rates: Machine, system: System) -> float:
    """The first stage and the last send each other the gradient of their common table."""
    if layout.pipeline == 1 or not architecture.is_tied or not system.adds_tied:
        return 0.0
    table = architecture.vocab_size * architecture.hidden_size / layout.tensor
    distance = (layout.pipeline - 1) * distance_of_stages(layout, system)
    return rates.send_seconds(system.sent_gradient_bytes * table, distance)


def distance_of_stages(layout: Layout, system: System) -> int:
    """Devices from one stage to the next."""
    return layout.tensor * layout.context * (layout.sharding if system.data_is_outermost else layout.copies)


def free_links(
    chunks: Sequence[tuple[PassTime, PassTime]], layout: Layout, rates: Machine, system: System
) -> Durations:
    """A stage's passes without the seconds in which tensor's collectives hold the links that its exchange needs, too.

    Where they share links one moves after the other, however they are interleaved: their bytes add up.
    """
    outside = layout.pipeline if system.data_is_outermost else 1
    near = layout.tensor * layout.context * layout.sharding
    span = near if owners(layout) > 1 else near * layout.data * outside
    shared = layout.tensor * layout.context > 1 and rates.share_links(layout.tensor * layout.context, span)
    free = [[each.seconds - (each.sending if shared else 0.0) for each in way] for way in zip(*chunks, strict=True)]
    return Durations(tuple(free[0]), tuple(free[1]))


def hideaway(layout: Layout, passes: Durations) -> float:
    """Seconds beside which an exchange runs: of the last backward pass; from stage 2 of sharding on of all of them, as
    gradients leave after each; in stage 3 of all passes, as each gets matrices."""
    backward = sum(passes.backward)
    return (backward, backward, layout.micro_batches * backward, layout.micro_batches * passes.work)[layout.stage]
