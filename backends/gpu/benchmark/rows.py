"""One line of a result: what was called, by whom, how long, and what share of the card's rate that is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fusionkit_backends.gpu.benchmark.clock import NotRun, Outcome, Timing


@dataclass(frozen=True)
class Row:
    """share: rate / the ceiling's rate of the same rounds; None where there is no ceiling or no time."""

    piece: str
    call: str
    direction: str
    contestant: str
    outcome: Outcome
    share: float | None = None
    ceiling: str = ""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "outcome": asdict(self.outcome)}

    def __str__(self) -> str:
        label = f"{self.call:<34} {self.direction:<18} {self.contestant:<26}"
        if isinstance(self.outcome, NotRun):
            return f"{label} not run: {self.outcome.reason}"
        t = self.outcome
        share = "" if self.share is None else f"{self.share:7.1%} of {self.ceiling}"
        interval = f"[{t.low_us:,.1f}, {t.high_us:,.1f}]"
        return f"{label} {t.median_us:12,.1f} us {interval:<26} {share}  {self.note}".rstrip()


def rated(
    piece: str, call: str, direction: str, outcomes: dict[str, Outcome], ceiling: str, work: float, ceiling_work: float
) -> list[Row]:
    """Rows of one measurement. work, ceiling_work: bytes or operations of the call and of the contestant `ceiling`."""
    top = outcomes[ceiling]
    rows = []
    for name, outcome in outcomes.items():
        share = None
        if isinstance(outcome, Timing) and isinstance(top, Timing):
            done = ceiling_work if name == ceiling else work
            share = (done / outcome.median_us) / (ceiling_work / top.median_us)
        rows.append(Row(piece, call, direction, name, outcome, share, ceiling))
    return rows
