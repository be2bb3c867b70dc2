"""Measurements for people and for programs: the table, the claims or what forbids them, and JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusionkit_bench.markdown import markdown
from fusionkit_bench.mc2 import claim
from fusionkit_bench.mc2.grid import AT_LEAST, Judged
from fusionkit_bench.mc2.measurement import COLLECTIVE, FUSED, PRODUCT, SERIAL, Measurement

TIMES = ("op", "pass", "dtype", "M x K x N", "link", "t", "S", "Tg ms", "Tc ms", "of link", "Ts ms", "Tf ms", "claim")
FIGURES = ("op", "pass", "link", "c", "H", "E", "B", "split loss", "stolen", "H, overlap off", "Ts/Tf")
LEGEND = """\
Tg: the unsplit product alone, Tc: the collective alone, Ts: one after the other, Tf: the fused op; medians over rounds,
each of the round's slowest rank. of link: the collective's rate over the link's. c = Tc/Tg. H = 1 - (Tf - Tg)/Tc.
E = 1 - (Tf - Tg)/(Ts - Tg). B = max(Tg, Tc + Tg/(t S))/Tf. split loss: the op's products in its chunks without
communication, over Tg, minus 1. stolen: processor time of the threads that do not compute, over Tf, on the worst rank.
H, overlap off: the negative control, about 0. Figures are medians of each round's figure; in brackets the 95% bootstrap
interval."""


def table(measurements: Sequence[Measurement]) -> str:
    tables = [markdown(TIMES, list(map(times, measurements))), markdown(FIGURES, list(map(figures, measurements)))]
    return "\n\n".join([*tables, LEGEND, claims(measurements)])


def times(measured: Measurement) -> tuple[str, ...]:
    case, share = measured.case, measured.share_of_link

    def milliseconds(contestant: str) -> str:
        return f"{measured.median(contestant) * 1e3:.4g}"

    return (
        *(case.op, case.direction, case.dtype, f"{case.M} x {case.K} x {case.N}"),
        *(measured.link or "not shaped", str(case.world_size), str(measured.num_chunks)),
        *(milliseconds(PRODUCT), milliseconds(COLLECTIVE), "-" if share is None else f"{share:.0%}"),
        *(milliseconds(SERIAL), milliseconds(FUSED)),
        "no" if claim.reasons(measured) else "yes",
    )


def figures(measured: Measurement) -> tuple[str, ...]:
    case, found = measured.case, measured.figures

    def percent(name: str) -> str:
        return found[name].percent() if name in found else "-"

    return (
        *(case.op, case.direction, measured.link or "not shaped"),
        *(f"{found['c'].median:.2f}", percent("H"), percent("E"), str(found["B"])),
        *(percent("split loss"), percent("stolen"), percent("H, overlap off"), str(found["speed-up"])),
    )


def claims(measurements: Sequence[Measurement]) -> str:
    return "\n".join(text for measured in measurements for text in claim_lines(measured))


def claim_lines(measured: Measurement) -> Iterator[str]:
    """A figure with all that it depends on, or why there is none."""
    case, reasons = measured.case, claim.reasons(measured)
    if not reasons:
        yield (
            f"claim: {case.name}: H = {measured.figures['H'].percent()} at c = {measured.figures['c'].median:.2f}, "
            f"S = {measured.num_chunks}, t = {case.world_size}, egress of {measured.link} (tbf), "
            f"against {measured.ranks[0].baseline}, {measured.rounds} rounds"
        )
        return
    yield f"no claim: {case.name}, {measured.link or 'not shaped'}:"
    yield from (f"  {reason}" for reason in reasons)


def grid(judged: Sequence[Judged]) -> str:
    """Shapes below the limit by name, and a summary."""
    below = [each for each in judged if each.is_below]
    header = ("call", "serial over fused", "ran", f"below {AT_LEAST}")
    lines = [
        (each.case.name, str(each.ratio), each.path, "surely" if each.is_surely_below else "within noise")
        for each in below
    ]
    listed = f"{markdown(header, lines)}\n\n" if lines else ""
    paths = Counter(each.path for each in judged)
    return (
        f"{listed}{len(judged)} shapes; the median below {AT_LEAST} of the serial version: {len(below)}, "
        f"with the whole interval: {sum(each.is_surely_below for each in below)}\n"
        + "\n".join(f"  {count:>4} shapes  {path}" for path, count in sorted(paths.items()))
    )


def write(
    path: Path, measurements: Sequence[Measurement], judged: Sequence[Judged], machine: Mapping[str, Any]
) -> None:
    """Every second of every round and rank, and the figures."""
    record = {
        "machine": machine,
        "measurements": [entry(measured) for measured in measurements],
        "grid": [
            {"case": asdict(each.case), "serial_over_fused": asdict(each.ratio), "path": each.path} for each in judged
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")


def entry(measured: Measurement) -> dict[str, Any]:
    reasons = claim.reasons(measured)
    return {
        "case": asdict(measured.case),
        "link": measured.link,
        "share_of_link": measured.share_of_link,
        "S": measured.num_chunks,
        "baseline": measured.ranks[0].baseline,
        "claim": not reasons,
        "reasons": reasons,
        "figures": {name: asdict(figure) for name, figure in measured.figures.items()},
        "slowest_rank_s": {name: list(map(float, seconds)) for name, seconds in measured.seconds.items()},
        "ranks": [
            {
                "seconds": dict(rank.seconds),
                "stolen_s": list(rank.stolen),
                "ran": [[*what, count] for what, count in rank.ran.items()],
            }
            for rank in measured.ranks
        ],
    }
