"""The picture: for each number of rows, and for prefill, a bar of tokens a second for each contestant."""

from __future__ import annotations

import io
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.llama2_13b.bench.decode.report import prefill_per_s, share_of_bandwidth, tokens_per_s
from examples.llama2_13b.bench.decode.rounds import Entry, Work
from examples.llama2_13b.io import atomic

OURS, PEERS = "#2f6db5", "#9aa3ad"


def draw(path: Path, entries: Sequence[Entry], work: Work, title: str) -> None:
    """One panel beside the other, each with its own scale."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = [(f"{rows} row{'s' * (rows > 1)}", [tokens_per_s(entry, rows) for entry in entries]) for rows in work.rows]
    panels.append((f"prefill of {len(work.long_prompt)}", [prefill_per_s(entry, work) for entry in entries]))
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(2.0 * len(panels) + 1.5, 0.45 * len(entries) + 1.4), layout="constrained")
        for axes, (name, rates) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
            _bars(axes, entries, rates, name)
        _mark_ceiling(figure.axes[0], entries, work)
        lines = textwrap.fill(title, width=24 * len(panels), break_on_hyphens=False)
        figure.suptitle(f"tokens/s, more is better\n{lines}", fontsize=8, parse_math=False)
        picture = io.BytesIO()
        figure.savefig(picture, format=path.suffix[1:] or "png", dpi=130)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(path, picture.getvalue())


def _bars(axes: Any, entries: Sequence[Entry], rates: Sequence[Sequence[float]], name: str) -> None:
    places, medians = range(len(entries)), [statistics.median(each) for each in rates]
    colours = [OURS if entry.name.startswith("fusionkit") else PEERS for entry in entries]
    axes.barh(places, medians, color=colours)
    for place, median in zip(places, medians, strict=True):
        axes.annotate(f"{median:.3g}", (median, place), (3, 0), textcoords="offset points", va="center")
    axes.margins(x=0.3)  # room for the figures
    axes.set_xlim(left=0)
    axes.set_xticks([])
    axes.set_yticks(places, [entry.name for entry in entries])
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set_title(name, fontsize=9)
    axes.tick_params(axis="y", length=0)


def _mark_ceiling(axes: Any, entries: Sequence[Entry], work: Work) -> None:
    """What one row would reach if its steps did nothing but read the weights."""
    if work.rows[0] != 1:
        return
    for place, entry in enumerate(entries):
        shares = share_of_bandwidth(entry) or []
        ceilings = [rate / share for rate, share in zip(tokens_per_s(entry, 1), shares, strict=True)]
        axes.plot([statistics.median(ceilings)] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.5)
    axes.set_xlabel("line: all of the\nread bandwidth", fontsize=8)
