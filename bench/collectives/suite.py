"""Interleaved rounds of all contestants, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from fusionkit_bench.collectives.cases import CEILING, Case
from fusionkit_bench.collectives.group import Group
from fusionkit_bench.markdown import markdown

Times = dict[tuple[Case, str], list[float]]


def measure(groups: Sequence[Group], cases: Sequence[Case], rounds: int) -> Times:
    """Each round asks every contestant for the same case, one after the other."""
    times: Times = {}
    for case in cases:
        for _ in range(rounds):
            for group in groups:
                if case.op == CEILING and group.kind.worker != "fusionkit":
                    continue
                seconds = group.measure(case)
                if seconds is not None:
                    times.setdefault((case, group.kind.name), []).append(seconds)
    return times


def table(times: Times, groups: Sequence[Group], cases: Sequence[Case], world_size: int, tcp: bool) -> str:
    """One way's: medians in microseconds, the best peer's share of them, and the rate beside the ceiling's."""
    names = [group.kind.name for group in groups if group.kind.tcp == tcp]
    if not names:
        return ""
    medians = {key: statistics.median(value) for key, value in times.items()}
    own, peers = names[0], names[1:]
    rows = []
    for case in cases:
        if case.op == CEILING:
            continue
        mine = medians[case, own]
        others = [medians[case, name] for name in peers if (case, name) in medians]
        cells = [f"{medians[case, name] * 1e6:.1f}" if (case, name) in medians else "-" for name in names]
        rate, top = case.moved(world_size) / mine, case.num_bytes / medians[Case(CEILING, case.num_bytes), own]
        ratio = f"{min(others) / mine:.2f}" if others else "-"
        rows.append([case.op, case.size, *cells, ratio, f"{rate / 1e9:.2f}", f"{top / 1e9:.2f}"])
    ceiling = "a socket's GB/s" if tcp else "a copy's GB/s"
    return markdown(["call", "size", *(f"{name} us" for name in names), "best peer / own", "GB/s", ceiling], rows)
