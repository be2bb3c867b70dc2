"""Draws the README's roofline from the table in ops.md: python docs/performance/draw_roofline.py roofline_small.png

Rates and ceilings are the table's; FLOPs a byte come from the specs. Each call stands below its own ceiling, which was
measured in the same rounds. The roof is the median of these ceilings: of cold calls for memory, of products for FLOPs.
"""

from __future__ import annotations

import re
import statistics
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fusionkit.ops import load_spec
from fusionkit.spec import Benchmark, Cost, OpSpec

TABLE = Path(__file__).with_name("ops.md")
TITLE = "AMD EPYC (Zen 5), 2 cores, bfloat16, forward; make bench, 2026-11-24"
CALLS = {
    "fusion_rms_norm": "T2048xH5120",
    "fusion_add_rms_norm": "T2048xH5120",
    "swiglu": "T2048xI13824",
    "fusion_rope": "B1xS2048xH40xD128",
    "paged_attention": "B1xS4096xH40xD128-decode",
    "fused_adamw": "5120x5120",
    "flash_attention": "S4096-causal",
    "fused_linear": "T1024xK5120xN5120",
    "fused_linear_cross_entropy": "T2048xH5120xV32000",
}


def rows() -> list[dict[str, str]]:
    lines = [line.split("|")[1:-1] for line in TABLE.read_text().splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(header, line, strict=True)) for line in body]


def ceiling(row: dict[str, str]) -> float:
    """In bytes or FLOPs a second."""
    return float(row["rate"].split()[0]) * 1e9 / (float(row["of ceiling"].rstrip("%")) / 100)


def cost(op: str, case_name: str) -> Cost:
    spec = load_spec(op)
    benchmark = next(each for each in spec.benchmarks if each.case.name == case_name)
    return spec.cost(sizes(spec, benchmark), 2, False)


def sizes(spec: OpSpec, benchmark: Benchmark) -> dict[str, float]:
    arguments = benchmark.case.arguments(np.random.default_rng(0))
    found = {name: value for name, value in arguments.items() if isinstance(value, bool | int | float)}
    for each in spec.inputs:
        shape, names = np.shape(arguments.get(each.name)), each.shape.split()
        if shape and names[0] == "...":
            leading = len(shape) - len(names) + 1
            found["..."], shape, names = int(np.prod(shape[:leading])), shape[leading:], names[1:]
        found |= zip(names, shape, strict=False)
    return found | dict(benchmark.dims)


def chosen(table: list[dict[str, str]], op: str, case_name: str) -> dict[str, str]:
    """The forward pass in bfloat16: with cold caches where the table has such a row."""
    wanted = (op, case_name, "bfloat16", "forward")
    found = [row for row in table if (row["op"], row["call"], row["dtype"], row["pass"]) == wanted]
    return min(found, key=lambda row: row["caches"])


def draw(path: Path) -> None:
    table = rows()
    memory = statistics.median(ceiling(row) for row in table if row["caches"] == "cold" and "GB/s" in row["rate"])
    product = statistics.median(ceiling(r) for r in table if r["dtype"] == "bfloat16" and "GFLOP/s" in r["rate"])
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    edge = product / memory
    axes.plot([0.3, edge, 4000], [0.3 * memory, product, product], color="0.4")
    for op, case_name in CALLS.items():
        row = chosen(table, op, case_name)
        spent = cost(op, case_name)
        intensity = spent.flops / (spent.bytes_read + spent.bytes_written)
        top = ceiling(row) * (intensity if "GB/s" in row["rate"] else 1)
        reached = top * float(row["of ceiling"].rstrip("%")) / 100
        (line,) = axes.plot([intensity] * 2, [reached, top], marker="_", markevery=[1], lw=1)
        label = f"{op}, {row['of ceiling']}"
        axes.plot(intensity, reached, "o", color=line.get_color(), label=label)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="FLOP/s", title=TITLE, ylim=(1e10, 3e12))
    axes.text(2, 1.1 * memory, f"{memory / 1e9:.0f} GB/s", color="0.4")
    axes.text(edge * 1.2, product * 1.15, f"{product / 1e9:.0f} GFLOP/s", color="0.4")
    axes.legend(fontsize=8, title="op, share of its own ceiling (dash)", title_fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    assert re.search(r"\.png$", sys.argv[1]), "name a PNG file"
    draw(Path(sys.argv[1]))
