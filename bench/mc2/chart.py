"""H against c: what was measured, beside what overlap in chunks can reach and what no overlap gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fusionkit_bench.mc2 import claim
from fusionkit_bench.mc2.measurement import Measurement

TARGET = 0.95


def draw(path: Path, measurements: Sequence[Measurement], title: str) -> None:
    """H above, the negative control below, over c."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 6.5), layout="constrained")
    hidden, control = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    draw_bounds(hidden, measurements)
    calls = list(dict.fromkeys((each.case.op, each.case.direction, each.case.dtype) for each in measurements))
    for number, call in enumerate(calls):
        points = [each for each in measurements if (each.case.op, each.case.direction, each.case.dtype) == call]
        draw_points(hidden, points, f"C{number}", " ".join(call))
        draw_control(control, points, f"C{number}")
    if any(claim.reasons(each) for each in measurements):
        hidden.plot([], [], "o", color="0.4", markerfacecolor="none", label="hollow: no claim")
    hidden.set(ylabel="H, hidden share of the collective's time, %")
    hidden.set_ylim(max(min(hidden.get_ylim()[0], 85), -20), 101)
    hidden.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    control.set(xlabel="c = Tc / Tg", ylabel="H, overlap off, %")
    control.axhline(0, color="0.5", lw=0.8)
    low, high = control.get_ylim()
    control.set_ylim(min(low, -10), max(high, 10))
    for axes in (hidden, control):
        axes.grid(alpha=0.3)
        for edge in claim.C_RANGE:
            axes.axvline(edge, color="0.6", lw=1, ls=(0, (1, 3)))
    figure.suptitle(title, fontsize=10, parse_math=False)  # a processor may have any name
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def draw_bounds(axes: Any, measurements: Sequence[Measurement]) -> None:
    """The bound, for each number of chunks: Tf = max(Tg, Tc + Tg / (t S)), so H = 1 - max(0, c + 1/(tS) - 1) / c."""
    found = [each.figures["c"].median for each in measurements]
    c = np.linspace(0.95 * min([*found, claim.C_RANGE[0]]), 1.05 * max([*found, claim.C_RANGE[1]]), 300)
    chunks = [each.case.world_size * each.num_chunks for each in measurements]
    for total, style in zip(sorted({min(chunks), max(chunks)}), ("-", ":"), strict=False):
        bound = 1 - np.maximum(0, c + 1 / total - 1) / c
        axes.plot(c, 100 * bound, style, color="0.5", lw=1, label=f"bound with t S = {total}")
    axes.axhline(100 * TARGET, color="0.5", lw=0.8, ls="--", label=f"{TARGET:.0%}")


def draw_points(axes: Any, points: Sequence[Measurement], colour: str, label: str) -> None:
    """With the interval of H."""
    points = sorted(points, key=lambda each: each.figures["c"].median)
    c = [each.figures["c"].median for each in points]
    axes.plot(c, [100 * each.figures["H"].median for each in points], "-", color=colour, lw=1, alpha=0.6)
    for x, each in zip(c, points, strict=True):
        hidden = each.figures["H"]
        spread = [[100 * (hidden.median - hidden.low)], [100 * (hidden.high - hidden.median)]]
        filled = "none" if claim.reasons(each) else colour
        axes.errorbar(x, 100 * hidden.median, spread, fmt="o", ms=6, color=colour, markerfacecolor=filled, capsize=3)
    axes.plot([], [], "o-", color=colour, label=label)


def draw_control(axes: Any, points: Sequence[Measurement], colour: str) -> None:
    for each in points:
        if "H, overlap off" in each.figures:
            axes.plot(each.figures["c"].median, 100 * each.figures["H, overlap off"].median, "x", color=colour, ms=5)
