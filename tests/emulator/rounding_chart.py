"""How fast rounding grows: the largest relative difference of the losses up to each step, a line for each layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


def draw(path: Path, title: str, growth: Mapping[str, Sequence[float]], bounds: Mapping[int, float]) -> None:
    """An SVG.

    Args:
        growth: differences up to each step, by the line's name; those of 0 are not drawn.
        bounds: of the differences up to a step.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):  # text stays text; the same bytes
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        for name, differences in growth.items():
            steps = range(1, len(differences) + 1)
            axes.plot(steps, [value or None for value in differences], label=name, lw=1.2)
        begin = 1
        for step, bound in bounds.items():
            if any(len(differences) >= step for differences in growth.values()):
                axes.plot([begin, step], [bound, bound], color="0.4", ls="--")
                axes.text(begin, 1.2 * bound, f"required up to step {step}: {bound:g}", color="0.4", fontsize=8)
                begin = step
        axes.set(yscale="log", xlabel="step", ylabel="largest relative difference so far", title=title)
        axes.margins(y=0.1)  # for the words above a bound
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})
