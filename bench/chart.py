"""A picture of a run, for a glance: one row an op, at Llama 2 13B's sizes, with its ceiling and its peers.

    python -m fusionkit_bench.chart results.json chart.png

draws what `fusionkit bench --json` wrote. All else that was measured stands in the table alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit_bench import record
from fusionkit_bench.contestants import COMPOSITION, KERNEL, OP, OP_AS_IT_COMES
from fusionkit_bench.result import Result
from fusionkit_bench.subject import FORWARD, TRAINING, Subject, leading

CEILING, PUBLIC, PYTORCH, PADDLE = "ceiling", "public op", "PyTorch", "Paddle's own ops"
MARKS = {  # in the order of the legend
    KERNEL: {"marker": "o", "color": "C0", "s": 55},
    PUBLIC: {"marker": "o", "facecolors": "none", "edgecolors": "C0", "s": 120, "linewidths": 1.6},
    PYTORCH: {"marker": "s", "color": "C1", "s": 48},
    PADDLE: {"marker": "D", "color": "C2", "s": 42},
}
PASSES = (FORWARD, TRAINING)


@dataclass(frozen=True)
class Row:
    """One op.

    Args:
        times: pass -> contestant -> how many times as long as the ceiling it takes.
        is_memory_kept: in the processes of the op and its peers; else they are as they come.
    """

    subject: Subject
    times: Mapping[str, Mapping[str, float]]
    is_memory_kept: bool


def rows(results: Sequence[Result]) -> list[Row]:
    """With warm caches, of each op its leading call."""
    warm = {result.subject: result for result in results if not result.cold}
    return [row(warm[subject]) for subject in leading(warm)]


def row(result: Result) -> Row:
    kept = (OP_AS_IT_COMES, FORWARD) not in result.stats
    times = {way: times_of_ceiling(result, way, OP if kept else OP_AS_IT_COMES) for way in result.subject.directions}
    return Row(result.subject, times, kept)


def times_of_ceiling(result: Result, way: str, public: str) -> dict[str, float]:
    """Peers stand as far from the op as the table's ratios say."""
    op = result.ratio(public, result.nearest_ceiling(way), way)
    faster = {PYTORCH: result.times_faster("torch", way), PADDLE: result.times_faster(COMPOSITION, way)}
    peers = {name: op * times for name, times in faster.items() if times is not None}
    return {KERNEL: 1 / result.share_of_ceiling(way), PUBLIC: op} | peers


def draw(path: Path, drawn: Sequence[Row], title: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(drawn, title).savefig(path, dpi=100, format="png")


def picture(drawn: Sequence[Row], title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 2.6 + 0.55 * len(drawn)), layout="constrained")
    panels = figure.subplots(1, len(PASSES), sharex=True, sharey=True)
    for axes, way in zip(panels, PASSES, strict=True):
        draw_pass(axes, drawn, way)
    names = [f"{s.op_name}\n{s.case_name}, {s.dtype}" for s in (each.subject for each in drawn)]
    panels[0].set_yticks(range(len(drawn)), names, fontsize=10)
    panels[0].set_ylim(len(drawn) - 0.5, -0.5)
    multiples = [value for each in drawn for times in each.times.values() for value in times.values()]
    panels[0].set_xlim(min(0.6, 0.8 * min(multiples)), max(12, 1.25 * max(multiples)))  # a decade, for its numbers
    process = "that keep freed memory" if any(each.is_memory_kept for each in drawn) else "as they come"
    handles, labels = panels[0].get_legend_handles_labels()
    legend = {"loc": "outside lower center", "ncols": len(labels), "fontsize": 11, "frameon": False}
    figure.legend(handles, labels, title=f"op and peers in processes {process}", **legend)
    figure.suptitle(title, fontsize=11, parse_math=False)  # a processor may have any name
    return figure


def draw_pass(axes: Any, drawn: Sequence[Row], way: str) -> None:
    axes.axvline(1, color="black", lw=2, label=CEILING)
    for name, mark in MARKS.items():
        found = [(each.times[way][name], at) for at, each in enumerate(drawn) if name in each.times.get(way, {})]
        if found:
            axes.scatter(*zip(*found, strict=True), label=name, zorder=3, **mark)
    for at, each in enumerate(drawn):
        draw_figures(axes, at, each.times.get(way))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("time, in multiples of the ceiling's")
    axes.set_title(way, fontsize=12)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_figures(axes: Any, at: int, times: Mapping[str, float] | None) -> None:
    """A line through the marks of a row, and at its end what they say."""
    if times is None:
        text = "no gradient"
    else:
        axes.plot([min(1, *times.values()), max(1, *times.values())], [at, at], color="0.8", lw=2, zorder=1)
        text = f"kernel: {1 / times[KERNEL]:.0%} of ceiling"
        if PYTORCH in times:
            text += f"\nop: {times[PYTORCH] / times[PUBLIC]:.3g} x PyTorch"
    axes.annotate(text, (1.01, at), xycoords=("axes fraction", "data"), va="center", fontsize=9)


def main() -> None:
    parser = argparse.ArgumentParser(description="draws the results of a run again")
    parser.add_argument("results", type=Path, help="what `fusionkit bench --json` wrote")
    parser.add_argument("chart", type=Path, help="PNG")
    files = parser.parse_args()
    title, results = record.read(files.results)
    draw(files.chart, rows(results), title)


if __name__ == "__main__":
    main()
