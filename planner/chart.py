"""H against c: the bounds of the formulas as curves, and where the layers' products lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionkit_planner.llama import ALL, DX, DX_AND_DW, FORWARD, SHARDED_WIDTHS, Row
from fusionkit_planner.overlap import TARGET
from fusionkit_planner.report import rows_of

from fusionkit.backend import DeviceModel

MARKERS = {FORWARD: "o", DX: "^", DX_AND_DW: "D"}


def draw(path: Path, device: DeviceModel, tokens: int, world_size: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    rows = rows_of(device, tokens, world_size)
    _bounds(axes, rows[0].times.most_chunks, world_size)
    _products(axes, rows)
    axes.axhline(100 * TARGET, color="0.7", lw=1)
    axes.set(xscale="log", xlabel="c = Tc / Tg", ylabel="% of the collective hidden", ylim=(0, 105))
    axes.set_title(f"simulated: {device.name}, tensor parallel {world_size}, {tokens} tokens", fontsize=10)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")


def _bounds(axes: Any, most_chunks: int, world_size: int) -> None:
    """H as it is at most, by c: of a sum one chunk is always left."""
    every_c = [0.05 * 1.03**step for step in range(180)]
    for steps, style, name in ((world_size * most_chunks, "-", "gather, reduce-scatter"),
                               (most_chunks, "--", "all-reduce")):  # fmt: skip
        limit = 1 - 1 / steps
        own = 1.0 if style == "-" else limit
        axes.plot(every_c, [100 * min(own, limit / c) for c in every_c], style, color="0.4", label=f"at most, {name}")


def _products(axes: Any, rows: Sequence[Row]) -> None:
    """H as it is expected: a layer has a colour, a direction a marker, and an all-reduce is hollow."""
    colours = {layer: f"C{index}" for index, layer in enumerate(SHARDED_WIDTHS)}
    for row in rows:
        axes.scatter(
            row.times.c,
            100 * row.times.expected,
            s=40,
            marker=MARKERS[row.direction],
            edgecolors=colours[row.layer],
            facecolors="none" if row.op == ALL else colours[row.layer],
        )
    for layer, colour in colours.items():
        axes.scatter([], [], color=colour, label=layer)
    for direction, marker in MARKERS.items():
        axes.scatter([], [], marker=marker, color="0.5", label=f"expected, {direction}")
    axes.scatter([], [], facecolors="none", edgecolors="0.5", label="all-reduce")
