"""The time of a training step, in parts, from a machine's rates. Simulated: nothing here is a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from fusionkit_planner.architecture import Architecture
from fusionkit_planner.layout import Layout
from fusionkit_planner.rates import Rates


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, simulated. The parts add up to `seconds`.

    Args:
        compute: of the busiest stage's kernels, what it computes again included.
        exposed_communication: collectives that no product hides.
        bubble: the busiest stage waits for others.
        optimizer: the update, and what is sent for it alone.
        other: launches and whatever else.
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


def step(architecture: Architecture, layout: Layout, sequence: int, rates: Rates) -> StepTime:
    """Price one step."""
    raise NotImplementedError
