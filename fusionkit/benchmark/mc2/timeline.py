"""A picture of fused calls: for each rank what it computed, sent and received, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Event = tuple[str, str, float, float]  # lane, label, begin and end in seconds of one clock

COMPUTE = "compute"
COLOURS = {
    COMPUTE: "#3b6ea8",
    "wait": "#b03a48",
    "transfer": "#d9822b",
    "transfer out": "#d9822b",
    "transfer in": "#4c9f70",
}  # the lanes, from the top
BAR = 0.78
LETTER_SHARE = 0.0045  # of the call's time: the width of a letter; a bar that its label fits carries it


def draw(path: Path, calls: Mapping[str, Sequence[Sequence[Event]]], title: str) -> None:
    """calls: the title of each panel -> the events of each rank."""
    from matplotlib.figure import Figure

    rows = [len(lanes_of(ranks)) * len(ranks) for ranks in calls.values()]
    figure = Figure(figsize=(13, 0.9 + sum(0.34 * number + 0.8 for number in rows)), layout="constrained")
    panels = figure.subplots(len(calls), 1, squeeze=False, height_ratios=[number + 1 for number in rows])[:, 0]
    for axes, (name, ranks) in zip(panels, calls.items(), strict=True):
        draw_call(axes, name, ranks)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def lanes_of(ranks: Sequence[Sequence[Event]]) -> list[str]:
    """Those in which something happened, in the order of COLOURS."""
    used = {lane for events in ranks for lane, *_ in events}
    return [lane for lane in COLOURS if lane in used] or [COMPUTE]


def draw_call(axes: Any, name: str, ranks: Sequence[Sequence[Event]]) -> None:
    """Time runs from the first event of any rank."""
    lanes = lanes_of(ranks)
    start = min((begin for events in ranks for _, _, begin, _ in events), default=0.0)
    end = max((finish for events in ranks for _, _, _, finish in events), default=1.0)
    for rank, events in enumerate(ranks):
        for lane, label, begin, finish in events:
            row = len(lanes) * rank + lanes.index(lane)
            text = label if finish - begin >= LETTER_SHARE * len(label) * (end - start) else ""
            draw_bar(axes, row, COLOURS[lane], 1e3 * (begin - start), 1e3 * (finish - start), text)
    for rank in range(1, len(ranks)):
        axes.axhline(len(lanes) * rank - 0.5, color="0.4", lw=0.8)
    names = [f"rank {rank}  {lane}" for rank in range(len(ranks)) for lane in lanes]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 1e3 * (end - start)), xlabel="ms")
    axes.set_title(f"{name}; computing {filled(ranks, start, end)} of the time", fontsize=9, loc="left")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def draw_bar(axes: Any, row: int, colour: str, begin_ms: float, end_ms: float, text: str) -> None:
    axes.barh(row, end_ms - begin_ms, BAR, begin_ms, color=colour, edgecolor="white", linewidth=0.6)
    if text:
        axes.text((begin_ms + end_ms) / 2, row, text, ha="center", va="center", fontsize=6, color="white", clip_on=True)


def filled(ranks: Sequence[Sequence[Event]], start: float, end: float) -> str:
    """How much of the call each rank computes."""
    seconds = [sum(finish - begin for lane, _, begin, finish in events if lane == COMPUTE) for events in ranks]
    return ", ".join(f"{each / (end - start):.0%}" for each in seconds)
