"""What the copies of a model send each other in a step, and how much of it their passes hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusionkit_planner.architecture import Architecture
from fusionkit_planner.layout import Layout
from fusionkit_planner.machine import Machine
from fusionkit_planner.pipeline_schedule import Durations
from fusionkit_planner.system import System


@dataclass(frozen=True)
class Exchange:
    """Seconds of what the copies of the model send each other, alone.

    Args:
        beside: sums of gradients, and in stage 3 of sharding the matrices: passes may run meanwhile.
        after: sums over data of what an owner has, and the new values of the others: no pass runs then.
        moving: of `beside`, those in which a device's own processor moves bytes.
        matrices, gradients: of `beside` in stage 3, those of a layer in one pass.
        first: likewise those of the matrices for which a forward pass waits before all else.
    """

    beside: float
    after: float
    moving: float = 0.0
    matrices: float = 0.0
    gradients: float = 0.0
    first: float = 0.0

    @property
    def seconds(self) -> float:
        return self.beside + self.after


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
        place = (near * layout.data, sent, stride * outside)
        return Exchange(rates.all_reduce_seconds(*place), tied, 2 * rates.moving_seconds(*place))
    passes = layout.micro_batches if layout.stage >= 2 else 1
    to_owner, moved = rates.gather_seconds(near, sent, stride), passes * rates.moving_seconds(near, sent, stride)
    over_data = rates.all_reduce_seconds(layout.data, sent / owning, stride * near * outside)
    new = (owning, system.sent_parameter_bytes * count, stride)
    back = rates.gather_seconds(*new)
    if layout.stage < 3:
        return Exchange(passes * to_owner, over_data + back + tied, moved)
    layer = architecture.parameters_of_layer / layout.tensor / count
    table = architecture.vocab_size * architecture.hidden_size / layout.tensor / count
    return Exchange(
        beside=passes * (to_owner + 2 * back),
        after=over_data + tied,
        moving=moved + 2 * passes * rates.moving_seconds(*new),
        matrices=layer * back,
        gradients=layer * to_owner,
        first=table * back if layout.pipeline == 1 else 0.0,
    )


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


def added(sent: Exchange, layers: Sequence[int], passes: Durations, layout: Layout) -> float:
    """Seconds by which the exchange beside the passes makes them longer.

    Args:
        layers: of each chunk.
        passes: of each chunk, as far as they leave the links free.
    """
    waits = layout.micro_batches * waits_for_layers(sent, layers, passes) if layout.stage == 3 else 0.0
    return max(sent.beside - hideaway(layout, passes), waits, sent.moving)


def waits_for_layers(sent: Exchange, layers: Sequence[int], passes: Durations) -> float:
    """Of a micro-batch, in stage 3 of sharding: a layer hides the matrices of the next one alone, and in a backward
    pass also the gradients of the one before. Nothing hides what a chunk needs first.

    Args:
        layers: of each chunk.
    """
    found = 0.0
    for count, forward, backward in zip(layers, passes.forward, passes.backward, strict=True):
        ahead = max(0.0, sent.matrices - forward / count)
        back = max(0.0, sent.matrices + sent.gradients - backward / count)
        found += (count - 1) * (ahead + back)
    begins = 2 * len(layers) * sent.matrices if len(layers) > 1 else 0.0  # what another chunk had is here
    return found + sent.first + begins


def hideaway(layout: Layout, passes: Durations) -> float:
    """Seconds beside which an exchange runs: of the last backward pass; from stage 2 of sharding on of all of them, as
    gradients leave after each; in stage 3 of all passes, as each gets matrices."""
    backward = sum(passes.backward)
    return (backward, backward, layout.micro_batches * backward, layout.micro_batches * passes.work)[layout.stage]
