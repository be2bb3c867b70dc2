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
from fusionkit_bench.table import HEADER

TABLE = Path(__file__).with_name("ops.md")
TITLE = "AMD EPYC (Zen 5), 2 cores; make bench, 2026-11-24"
OF_CEILING, OF_KERNEL = HEADER.index("of ceiling"), HEADER.index("of kernel")
PEERS = {chart.PADDLE: HEADER.index("x Paddle") + 1, chart.PYTORCH: HEADER.index("x PyTorch") + 1}


def times() -> Iterator[tuple[Subject, str, dict[str, float]]]:
    """Of calls with warm caches: the pass, and how many times as long as the ceiling each contestant takes."""
    lines = (line.split("|")[1:-1] for line in TABLE.read_text().splitlines() if line.startswith("|"))
    for cells in ([cell.strip() for cell in line] for line in lines):
        op_name, case_name, dtype, way, caches, *_ = cells
        if caches == "warm":
            kernel = 100 / float(cells[OF_CEILING].rstrip("%"))
            op = kernel * 100 / float(cells[OF_KERNEL].rstrip("%"))
            peers = {name: op * float(cells[at]) for name, at in PEERS.items() if cells[at] != "-"}
            yield Subject(op_name, case_name, dtype), way, {KERNEL: kernel, chart.PUBLIC: op} | peers


def rows() -> list[chart.Row]:
    found: dict[Subject, dict[str, dict[str, float]]] = {}
    for subject, way, of_ceiling in times():
        found.setdefault(subject, {})[way] = of_ceiling
    return [chart.Row(each, found[each], is_memory_kept=True) for each in leading(found)]


if __name__ == "__main__":
    chart.draw(Path(sys.argv[1]), rows(), TITLE)
