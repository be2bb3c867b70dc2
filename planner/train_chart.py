"""The best plans at a glance: memory of the fullest device by what it holds, and where a step's time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionkit_planner.dominance import listed
from fusionkit_planner.layout import Layout
from fusionkit_planner.search import Answer, peak
from fusionkit_planner.train_report import BEST, PARTS, rate

MEMORY = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers", "margin")
# Dark to light where the bars need a space; one colour means one thing in each picture.
MEMORY_COLOURS = ("#1f3b73", "#3f6fb5", "#8fb3e0", "#e08a2e", "#f2c14e", "#7b9e6b", "#cccccc")
TIME_COLOURS = ("#3f6fb5", "#d1495b", "#cccccc", "#7b9e6b", "#f2c14e")

Measured = Mapping[int, tuple[float, float | None]]  # place in the answer -> (bytes, seconds or None)


def draw(path: Path, answer: Answer, measured: Measured | None = None) -> None:
    """The plans of the list. What was measured of one of them is a diamond on its bars."""
    from matplotlib.figure import Figure

    question = answer.question
    places, plans = zip(*listed(answer.plans, BEST), strict=True)
    figure = Figure(figsize=(13, 1.8 + 0.42 * len(plans)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    measured = measured or {}
    slowest = _marks(left, right, places, measured)
    stages = [peak(question, plan.layout) for plan in plans]
    _bars(left, {part: [getattr(stage, part) / 1e9 for stage in stages] for part in MEMORY}, MEMORY_COLOURS)
    left.axvline(question.memory_bytes / 1e9, color="black", linestyle="--", linewidth=1)
    left.set(xlabel="GB of the device that needs most; dashed: what it has", title="Memory")
    parts = {name: [getattr(plan.time, part) for plan in plans] for part, name in PARTS.items()}
    _bars(right, parts, TIME_COLOURS)
    for row, (place, plan) in enumerate(zip(places, plans, strict=True)):
        tokens = rate(plan.time.tokens_per_device(plan.layout, question.sequence))
        beyond = max(plan.time.seconds, measured.get(place, (0, None))[1] or 0)
        right.annotate(f"  {tokens} tokens/s/device", (beyond, row), va="center", fontsize=8)
    right.set_xlim(0, max(1.4 * max(plan.time.seconds for plan in plans), 1.4 * slowest))
    right.set(xlabel="seconds of a step", title="Time")
    labels = [f"{_label(plan.layout)}   {place + 1}" for place, plan in zip(places, plans, strict=True)]
    left.set_yticks(range(len(plans)), labels)
    left.invert_yaxis()
    figure.suptitle(
        f"{'simulated, diamonds measured' if measured else 'simulated'}: "
        f"{question.architecture.name} on {question.devices} x {question.rates.name}, "
        f"{question.global_batch} rows of {question.sequence} tokens",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")


def _marks(left: Any, right: Any, places: Sequence[int], measured: Measured) -> float:
    """The most seconds among them; before the bars, whose legends name them."""
    rows = [(row, *measured[place]) for row, place in enumerate(places) if place in measured]
    memory = [(size / 1e9, row) for row, size, _ in rows]
    time = [(seconds, row) for row, _, seconds in rows if seconds is not None]
    for axes, points in ((left, memory), (right, time)):
        if points:
            axes.scatter(*zip(*points, strict=True), marker="D", color="black", s=28, label="measured", zorder=3)
    return max((seconds for seconds, _ in time), default=0.0)


def _bars(axes: Any, parts: dict[str, list[float]], colours: tuple[str, ...]) -> None:
    """One bar a plan, its parts side by side from left to right."""
    count = len(next(iter(parts.values())))
    starts = [0.0] * count
    for (name, widths), colour in zip(parts.items(), colours, strict=True):
        if any(widths):
            axes.barh(range(count), widths, left=starts, color=colour, label=name, height=0.72)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize=8, frameon=False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _label(one: Layout) -> str:
    words = [f"tensor {one.tensor}"]
    if one.pipeline > 1:
        words.append(f"pipeline {one.pipeline}" + (f"x{one.virtual_stages}" if one.virtual_stages > 1 else ""))
    if one.data > 1:
        words.append(f"data {one.data}")
    if one.sharding > 1:
        words.append(f"sharding {one.sharding}/{one.stage}")
    words.append(f"rows {one.micro_batch}")
    return ", ".join([*words, f"recompute {one.recompute}"] if one.recompute != "none" else words)
