"""A picture of a run: each call under the machine's roof, and as a share of its own ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionkit_bench.contestants import KERNEL, PRODUCT, STREAM
from fusionkit_bench.result import Result
from fusionkit_bench.target import Judged


def draw(path: Path, results: Sequence[Result], judged: Sequence[Judged], title: str) -> None:
    from matplotlib.figure import Figure

    bars = [(result, direction) for result in results for direction in result.subject.directions]
    figure = Figure(figsize=(17, max(6.0, 0.17 * len(bars) + 1.5)), layout="constrained")
    roof, shares = figure.subplots(1, 2, width_ratios=(3, 4))
    colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(r.subject.op_name for r in results))}
    draw_roof(roof, bars, colours)
    draw_shares(shares, bars, judged, colours)
    figure.suptitle(title, fontsize=10, parse_math=False)  # a processor may have any name
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")


def draw_roof(axes: Any, bars: Sequence[tuple[Result, str]], colours: dict[str, str]) -> None:
    """FLOP/s over FLOPs a byte. The roof's two lines are the best that the run's own ceilings reached."""
    points = [(intensity(result, way), flops_per_s(result, way, KERNEL), result, way) for result, way in bars]
    for x, y, result, way in points:
        marker = "o" if way == "forward" else "^"
        filled = {} if result.subject.dtype == "bfloat16" else {"facecolors": "none"}
        colour = colours[result.subject.op_name]
        axes.scatter(x, y, s=26, marker=marker, edgecolors=colour, **({"color": colour} | filled))
    draw_ceilings(axes, bars, min(p[0] for p in points) / 2, max(p[0] for p in points) * 2)
    for name, colour in colours.items():
        axes.scatter([], [], color=colour, label=name)
    axes.scatter([], [], marker="^", color="0.5", label="with backward")
    axes.scatter([], [], facecolors="none", edgecolors="0.5", label="float32")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="FLOP/s", title="under the roof")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def draw_ceilings(axes: Any, bars: Sequence[tuple[Result, str]], low: float, high: float) -> None:
    bandwidth = best(bars, STREAM, lambda cost, s: (cost.bytes_read + cost.bytes_written) / s)
    ridges = []
    for dtype, style in (("bfloat16", "-"), ("float32", "--")):
        rate = best([bar for bar in bars if bar[0].subject.dtype == dtype], PRODUCT, lambda cost, s: cost.flops / s)
        if rate:
            begin = rate / bandwidth if bandwidth else low
            ridges.append(begin)
            name = f"{dtype}, {rate / 1e9:.0f} GFLOP/s"
            axes.plot([begin, max(high, begin)], [rate, rate], style, color="0.4", label=name)
    if bandwidth:
        ends = [low, max(ridges, default=high)]
        axes.plot(ends, [x * bandwidth for x in ends], color="0.4", label=f"{bandwidth / 1e9:.0f} GB/s")


def draw_shares(
    axes: Any, bars: Sequence[tuple[Result, str]], judged: Sequence[Judged], colours: dict[str, str]
) -> None:
    promised = {
        (id(each.result), each.target.direction): each.target.at_least
        for each in judged
        if each.target.against == "ceiling"
    }
    for row, (result, way) in enumerate(bars):
        share = 100 * result.share_of_ceiling(way)
        axes.barh(row, share, color=colours[result.subject.op_name], alpha=0.9 if way == "forward" else 0.55)
        target = promised.get((id(result), way))
        if target is not None:
            axes.plot(
                [100 * target] * 2, [row - 0.45, row + 0.45], color="black" if share >= 100 * target else "red", lw=2
            )
    axes.set_yticks(range(len(bars)), [label(*bar) for bar in bars], fontsize=6.5)
    axes.set(
        xlabel="% of its ceiling; mark: promised (red: missed)", title="share of the ceiling", ylim=(len(bars), -1)
    )
    axes.axvline(100, color="0.4", lw=1)
    axes.grid(axis="x", alpha=0.3)


def label(result: Result, way: str) -> str:
    subject = result.subject
    extra = "" if way == "forward" else " + backward"
    return f"{subject.op_name} {subject.case_name} {subject.dtype}{' cold' * result.cold}{extra}"


def intensity(result: Result, way: str) -> float:
    cost = result.costs[way]
    return cost.flops / (cost.bytes_read + cost.bytes_written)


def flops_per_s(result: Result, way: str, contestant: str) -> float:
    return result.costs[way].flops / result.median(contestant, way)


def best(bars: Sequence[tuple[Result, str]], kind: str, rate: Any) -> float:
    seen = [(result.costs[way], result.ceiling(kind, way)) for result, way in bars if not result.cold]
    return max((rate(cost, seconds) for cost, seconds in seen if seconds), default=0.0)
