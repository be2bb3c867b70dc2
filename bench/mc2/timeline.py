"""A picture of fused calls: for each rank what it computed and waited for, and what its link carried meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit_bench.mc2 import traffic
from fusionkit_bench.mc2.traffic import Sample

Event = tuple[str, str, float, float]  # lane, label, begin and end in seconds of one clock

COMPUTE, WAIT, OUT, IN = "compute", "wait", "transfer out", "transfer in"
LANES = (COMPUTE, WAIT, OUT, IN)
COLOURS = {COMPUTE: "#3b6ea8", WAIT: "#b03a48", OUT: "#d9822b", IN: "#4c9f70"}
BAR = 0.8
LETTER_SHARE = 0.0045  # of the call's time: the width of a letter; a bar that its label fits carries it


@dataclass(frozen=True)
class Recorded:
    """One rank's part of one call."""

    events: Sequence[Event]
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Panel:
    """One call: its ranks, and bytes/s of a link, which fill the height of a transfer's lane; None: no link."""

    name: str
    ranks: Sequence[Recorded]
    link_rate: float | None


def draw(path: Path, panels: Sequence[Panel], title: str) -> None:
    from matplotlib.figure import Figure

    rows = [len(LANES) * len(panel.ranks) for panel in panels]
    figure = Figure(figsize=(13, 0.9 + sum(0.34 * number + 0.8 for number in rows)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[number + 1 for number in rows])[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        draw_call(axes, panel)
    figure.suptitle(title, fontsize=10, parse_math=False)  # a processor may have any name
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def draw_call(axes: Any, panel: Panel) -> None:
    """Time runs from the first event of any rank."""
    ranks, link = panel.ranks, panel.link_rate
    start, end = span_of(ranks)
    for number, rank in enumerate(ranks):
        first = len(LANES) * number
        for lane, label, begin, finish in rank.events:
            text = label if finish - begin >= LETTER_SHARE * len(label) * (end - start) else ""
            draw_bar(
                axes, first + LANES.index(lane), COLOURS[lane], 1e3 * (begin - start), 1e3 * (finish - start), text
            )
        if link:
            draw_traffic(axes, first, rank.samples, start, link)
        if number:
            axes.axhline(first - 0.5, color="0.4", lw=0.8)
    names = [f"rank {number}  {lane}" for number in range(len(ranks)) for lane in LANES]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 1e3 * (end - start)), xlabel="ms")
    height = f"; full height of a transfer: {8 * link / 1e6:.0f} Mbit/s" if link else ""
    axes.set_title(f"{panel.name}; computing {computing(ranks)} of the time{height}", fontsize=9, loc="left")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def draw_bar(axes: Any, row: int, colour: str, begin_ms: float, end_ms: float, text: str) -> None:
    axes.barh(row, end_ms - begin_ms, BAR, begin_ms, color=colour, edgecolor="white", linewidth=0.6)
    if text:
        axes.text((begin_ms + end_ms) / 2, row, text, ha="center", va="center", fontsize=6, color="white", clip_on=True)


def draw_traffic(axes: Any, first: int, samples: Sequence[Sample], start: float, link: float) -> None:
    """Each direction's rate as a filled curve that stands on the floor of its lane; a burst above the link's is cut."""
    rates = traffic.rates(samples)
    times = [1e3 * (middle - start) for middle, _, _ in rates]
    for lane, column in ((OUT, 1), (IN, 2)):
        floor = first + LANES.index(lane) + BAR / 2
        tops = [floor - BAR * min(1.0, rate[column] / link) for rate in rates]
        axes.fill_between(times, tops, floor, step="mid", color=COLOURS[lane], linewidth=0)


def span_of(ranks: Sequence[Recorded]) -> tuple[float, float]:
    events = [event for rank in ranks for event in rank.events]
    return min((begin for _, _, begin, _ in events), default=0.0), max((end for *_, end in events), default=1.0)


def computing(ranks: Sequence[Recorded]) -> str:
    """How much of the call each rank computes."""
    start, end = span_of(ranks)
    seconds = [sum(finish - begin for lane, _, begin, finish in rank.events if lane == COMPUTE) for rank in ranks]
    return ", ".join(f"{each / (end - start):.0%}" for each in seconds)
