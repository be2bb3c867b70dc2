"""The time of a training step, in parts, from a machine's rates. Simulated: nothing here is a measurement.

Source of the overlap of products with collectives: the bounds of docs/mc2.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from fusionkit_planner import exchange, passes, pipeline_schedule
from fusionkit_planner.architecture import Architecture
from fusionkit_planner.exchange import distance_of_stages, owners, weights
from fusionkit_planner.layout import Layout, Recompute
from fusionkit_planner.machine import Machine
from fusionkit_planner.passes import Collective, Matrix, Work
from fusionkit_planner.pipeline_schedule import Durations
from fusionkit_planner.rates import Rates
from fusionkit_planner.system import FUSIONKIT, System

from fusionkit.parallel.chunks import most_chunks


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, simulated. The parts add up to `seconds`.

    Args:
        compute: of the busiest stage's kernels, what it computes again included.
        exposed_communication: what collectives and messages add to the compute. Where a device's own processor moves
            them, that is no less than its time for it.
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


def step(
    architecture: Architecture, layout: Layout, sequence: int, rates: Machine, system: System = FUSIONKIT
) -> StepTime:
    """Price one step."""
    run = _pipeline(
        architecture.num_hidden_layers, cut_of(layout), pieces(architecture, layout, sequence, rates, system)
    )
    work = run.work * layout.micro_batches
    sent = exchange.gradients(architecture, layout, rates, system)
    exposed = sent.seconds
    if sent.beside and system.hides_gradients:
        exposed = sent.after + exchange.added(sent, run.layers, free_links(run.chunks, layout, rates, system), layout)
    optimizer = rates.update_seconds(weights(architecture, layout) / owners(layout), system)
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
        layers: of each of these chunks.
    """

    seconds: float
    chunks: tuple[tuple[PassTime, PassTime], ...]
    layers: tuple[int, ...]

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
    return Run(seconds, tuple(stages[busiest]), tuple(layout.layers_of(busiest, layers)))


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
    sending, _ = _collective(work.collective, work.sent_bytes, layout, rates)
    exposed = sending
    for product in work.products:
        alone = rates.product_seconds(product.rows, product.in_features, product.out_features)
        sent, moving = _collective(product.collective, product.sent_bytes, layout, rates)
        compute, sending, collectives = compute + alone, sending + sent, collectives + bool(product.collective)
        exposed += _exposed(product, alone, sent, moving, layout, system)
    compute += rates.attention_seconds(work.score_flops)
    compute += rates.traffic_seconds(work, system)
    if layout.context > 1 and work.gathered_bytes:
        gathered = rates.gather_seconds(layout.context, work.gathered_bytes, layout.tensor)
        beyond = gathered - rates.attention_seconds(work.score_flops) * (1 - 1 / layout.context)
        exposed += beyond * (beyond > 0)
        sending, collectives = sending + gathered, collectives + 1
    waiting = rates.waiting_seconds(work.kernels, collectives, compute + exposed)
    return PassTime(compute, exposed, waiting, sending)


def _collective(name: Collective, num_bytes: float, layout: Layout, rates: Machine) -> tuple[float, float]:
    """(seconds alone, of these in which the device's own processor moves bytes), between ranks of tensor."""
    if not name:
        return 0.0, 0.0
    moving = rates.moving_seconds(layout.tensor, num_bytes)
    if name == "all_reduce":
        return rates.all_reduce_seconds(layout.tensor, num_bytes), 2 * moving
    return rates.gather_seconds(layout.tensor, num_bytes), moving


def _exposed(product: Matrix, alone: float, collective: float, moving: float, layout: Layout, system: System) -> float:
    """By the bounds of docs/mc2.md: one chunk of the product, or of a sum, has nothing to run beside it. What the
    device's own processor moves, it does not hide."""
    if not product.collective or not system.hides_tensor:
        return collective
    chunks = most_chunks(product.rows // layout.tensor, int(product.sent_bytes / product.rows))
    if product.collective == "all_reduce":
        last = collective / chunks
        return max(last + moving * (1 - 1 / chunks), collective - alone * (1 - 1 / chunks))
    return max(moving, collective - alone * (1 - 1 / (layout.tensor * chunks)))


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
