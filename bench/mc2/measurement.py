"""What was measured of one case, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from fusionkit_bench.mc2 import statistics
from fusionkit_bench.mc2.cases import ALL_REDUCE, Case
from fusionkit_bench.mc2.network import bits_per_s
from fusionkit_bench.mc2.statistics import Estimate

PRODUCT, COLLECTIVE, SERIAL, FUSED = "Tg", "Tc", "Ts", "Tf"
CONTROL = "Tf, overlap off"
CHUNKS = "chunks"


@dataclass(frozen=True)
class RankRounds:
    """One rank's share of a measurement.

    Args:
        seconds: contestant -> of each round.
        stolen: of each round: processor seconds of the other threads during the fused call.
        ran: (op, backend, reason) -> how often, in the fused calls alone.
        num_chunks: S, as the op planned.
        baseline: which of the unsplit products was the fastest.
    """

    seconds: Mapping[str, Sequence[float]]
    stolen: Sequence[float]
    ran: Mapping[tuple[str, str, str], int]
    num_chunks: int
    baseline: str


@dataclass(frozen=True)
class Measurement:
    """One case at one rate of the link, over all ranks.

    Args:
        link: the rate of each rank's egress as `tc` has it; None: not shaped.
        shares_cores: some ranks had no core of their own.
    """

    case: Case
    link: str | None
    shares_cores: bool
    ranks: Sequence[RankRounds]

    @cached_property
    def seconds(self) -> dict[str, Any]:
        """Contestant -> array over rounds: of the slowest rank in each."""
        return {name: np.max([rank.seconds[name] for rank in self.ranks], axis=0) for name in self.ranks[0].seconds}

    @property
    def rounds(self) -> int:
        return len(self.seconds[FUSED])

    @property
    def num_chunks(self) -> int:
        return self.ranks[0].num_chunks

    def median(self, contestant: str) -> float:
        return float(np.median(self.seconds[contestant]))

    @property
    def share_of_link(self) -> float | None:
        """Bytes that each rank sends / Tc over the link's rate. Headers take 4%; a poor transport is easily hidden."""
        if self.link is None:
            return None
        return 8 * self.case.bytes_sent / self.median(COLLECTIVE) / bits_per_s(self.link)

    @cached_property
    def figures(self) -> dict[str, Estimate]:
        """Each computed in every round, whose contestants saw one machine; then the median over the rounds."""
        product, collective, serial, fused = (self.seconds[name] for name in (PRODUCT, COLLECTIVE, SERIAL, FUSED))
        reduces_all = self.case.op == ALL_REDUCE
        bound = statistics.bound_reached(product, collective, fused, self.num_chunks, self.case.world_size, reduces_all)
        rounds = {
            "c": statistics.communication_ratio(product, collective),
            "H": statistics.hidden(product, collective, fused),
            "E": statistics.effective(product, serial, fused),
            "B": bound,
            "stolen": np.max([rank.stolen for rank in self.ranks], axis=0) / fused,
            "serial excess": statistics.serial_excess(product, collective, serial),
            "speed-up": serial / fused,
        }
        if CHUNKS in self.seconds:
            rounds["split loss"] = statistics.split_loss(product, self.seconds[CHUNKS])
        if CONTROL in self.seconds:
            rounds["H, overlap off"] = statistics.hidden(product, collective, self.seconds[CONTROL])
        return {name: statistics.estimate(values) for name, values in rounds.items()}

    @cached_property
    def others_than_chosen(self) -> dict[str, int]:
        """What ran in the fused calls and was not the op's own first choice: "op on backend: reason" -> how often."""
        found: dict[str, int] = {}
        for rank in self.ranks:
            for (op, backend, reason), count in rank.ran.items():
                if reason != "chosen":
                    name = f"{op} on {backend}: {reason}"
                    found[name] = found.get(name, 0) + count
        return found
