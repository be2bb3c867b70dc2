"""The best rate of each ceiling in a run: what the machine gave while the calls were measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fusionkit_bench.contestants import PEAK, PRODUCT, STREAM
from fusionkit_bench.markdown import markdown
from fusionkit_bench.result import Result
from fusionkit_bench.worker import CACHE_BYTES

LEGEND = """\
peak: multiplies and adds in registers alone, on all threads; a GFLOP/s of the table over it is a share of the peak.
product: by a library that is not fusionkit's. stream: calls that the caches cannot hold, or that found them cold."""


def table(results: Sequence[Result]) -> str:
    """Empty where nothing has a ceiling."""
    lines = [(name, f"{rate / 1e9:.3g} {unit}") for name, (rate, unit) in best(results).items()]
    return f"{markdown(('ceiling', 'best rate'), lines)}\n\n{LEGEND}" if lines else ""


def best(results: Sequence[Result]) -> dict[str, tuple[float, str]]:
    """Ceiling -> FLOP/s or B/s, the fastest of a kind first."""
    found: dict[str, tuple[float, str]] = {}
    for name, rate, unit in rates(results):
        found[name] = max(found.get(name, (0.0, unit)), (rate, unit))
    kinds = (PEAK, PRODUCT, STREAM)
    order = sorted(found, key=lambda name: ([name.startswith(kind) for kind in kinds].index(True), -found[name][0]))
    return {name: found[name] for name in order}


def rates(results: Sequence[Result]) -> Iterator[tuple[str, float, str]]:
    for result in results:
        for name, direction in result.stats:
            cost, seconds = result.costs[direction], result.median(name, direction)
            num_bytes = cost.bytes_read + cost.bytes_written
            if name.startswith(PEAK):
                yield name, cost.flops / result.stats[name, direction].min, "GFLOP/s"
            elif name.startswith(PRODUCT):
                yield name, cost.flops / seconds, "GFLOP/s"
            elif name.startswith(STREAM) and (result.cold or num_bytes > CACHE_BYTES):
                yield name, num_bytes / seconds, "GB/s"
