"""Draws the README's picture from the table in ops.md: python docs/performance/draw_chart.py docs/performance/chart.png

It is the chart of `fusionkit bench --chart`, where the op and its peers keep freed memory: the columns named "tuned".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from fusionkit_bench import chart
from fusionkit_bench.contestants import KERNEL
from fusionkit_bench.subject import Subject, leading

TABLE = Path(__file__).with_name("ops.md")
TITLE = "AMD EPYC (Zen 5), 2 cores; make bench, 2026-11-24"
PEERS = {chart.PADDLE: "x Paddle", chart.PYTORCH: "x PyTorch"}


def times() -> Iterator[tuple[Subject, str, dict[str, float]]]:
    """Of calls with warm caches: the pass, and how many times as long as the ceiling each contestant takes."""
    lines = [line.split("|")[1:-1] for line in TABLE.read_text().splitlines() if line.startswith("|")]
    header, _, *table = [[cell.strip() for cell in line] for line in lines]
    tuned = {name: header.index(column) + 1 for name, column in PEERS.items()}
    for cells in table:
        op_name, case_name, dtype, way, caches, *_ = cells
        if caches == "warm":
            kernel = 100 / float(cells[header.index("of ceiling")].rstrip("%"))
            op = kernel * 100 / float(cells[header.index("of kernel")].rstrip("%"))
            peers = {name: op * float(cells[at]) for name, at in tuned.items() if cells[at] != "-"}
            yield Subject(op_name, case_name, dtype), way, {KERNEL: kernel, chart.PUBLIC: op} | peers


def rows() -> list[chart.Row]:
    found: dict[Subject, dict[str, dict[str, float]]] = {}
    for subject, way, of_ceiling in times():
        found.setdefault(subject, {})[way] = of_ceiling
    return [chart.Row(each, found[each], is_memory_kept=True) for each in leading(found)]


if __name__ == "__main__":
    chart.draw(Path(sys.argv[1]), rows(), TITLE)
