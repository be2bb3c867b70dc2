"""`fusionkit bench mc2`: how much communication the fused products hide, proven on a shaped link. See docs/mc2.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fusionkit_bench.mc2.cases import BACKWARD, BYTES, FORWARD, OPS, ROWS_OF_A_RANK

from fusionkit import extras, registry
from fusionkit.dtypes import full_dtype

if TYPE_CHECKING:
    from fusionkit_bench.mc2.suite import Found

HELP = "measure how much of a collective's time the fused products hide, between ranks on a shaped link"
BUSY = 0.3  # processes that want to run, averaged over the last minute
SWEEP = "200mbit,250mbit,300mbit,400mbit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="*", metavar="OP", help=f"of {', '.join(OPS)} (default: all)")
    parser.add_argument("--direction", choices=(FORWARD, BACKWARD), action="append", help="default: both")
    parser.add_argument("--dtype", type=full_dtype, choices=tuple(BYTES), default="bfloat16")
    parser.add_argument("--backend", default="cpu", help="whose kernels (default: cpu)")
    parser.add_argument("--ranks", type=int, default=2, help="processes, each with a core and a network (default: 2)")
    parser.add_argument("--link", metavar="RATE,...", help="each rank's egress, as tc has it (default: 200mbit)")
    parser.add_argument("--no-link", action="store_true", help="do not shape: shared memory, without root, no claim")
    parser.add_argument("--c", type=float, default=0.6, help="the wanted Tc/Tg, by which sizes are chosen")
    parser.add_argument("--rows", type=int, default=ROWS_OF_A_RANK, help="M of each rank (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds; a claim needs 15 (default: 21)")
    parser.add_argument("--sweep", action="store_true", help=f"the same sizes at {SWEEP}, or at each --link")
    parser.add_argument("--grid", action="store_true", help="100 shapes against the serial path, instead")
    parser.add_argument("--require-claim", action="store_true", help="exit with 1 when something forbids a claim")
    parser.add_argument("--table", type=Path, metavar="FILE", help="what is printed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every timing and figure")
    parser.add_argument("--timeline", type=Path, metavar="FILE", help="one call of each op, its lanes as PNG")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="H against c as PNG")


def run(options: argparse.Namespace) -> int:
    check(options)
    from fusionkit_bench.mc2 import network, suite
    from fusionkit_bench.mc2.cores import physical_cores

    links = [] if options.no_link else (options.link or (SWEEP if options.sweep else "200mbit")).split(",")
    for link in links:
        network.bits_per_s(link)
    if links and (lacking := network.missing()):
        print(f"bench mc2: the link is not shaped, and nothing is claimed. Missing: {'; '.join(lacking)}.\n", NEEDED)
        links = []
    cores = physical_cores()
    if len(cores) < options.ranks:
        print(f"bench mc2: {options.ranks} ranks share {len(cores)} cores, and nothing is claimed.")
    found = suite.Found()
    if found.machine["load before"] > BUSY:
        load = f"{found.machine['load before']:.1f}"
        print(f"bench mc2: this machine is busy (load {load}); figures will scatter.", file=sys.stderr)
    try:
        suite.run(options, links, cores, found)
    except KeyboardInterrupt:
        print("bench mc2: interrupted; what was measured until now follows", file=sys.stderr)
        report(options, found)
        return 130
    report(options, found)
    return int(options.require_claim and not found.proven)


NEEDED = """\
Shaping needs `ip` and `tc` (package iproute2), `unshare` and `nsenter` (util-linux), and root, or a user namespace:
unshare --user --map-root-user fusionkit bench mc2"""


def check(options: argparse.Namespace) -> None:
    for what in options.what:
        if what not in OPS:
            raise ValueError(f"bench mc2: OP must be one of {', '.join(OPS)}, got {what!r}")
    for name, least in (("ranks", 2), ("rounds", 1), ("rows", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"bench mc2: --{name} must be at least {least}, got {getattr(options, name)}")
    if options.c <= 0:
        raise ValueError(f"bench mc2: --c must be more than 0, got {options.c}")
    registry.require_name(options.backend, "--backend")
    backward = BACKWARD in (options.direction or [BACKWARD])
    if absent := extras.missing(*["matplotlib"] * bool(options.timeline or options.chart), *["paddle"] * backward):
        raise ValueError(f"bench mc2: {absent}")


def report(options: argparse.Namespace, found: Found) -> None:
    """Writes the files that are wanted, and prints: a screen or a picture that fails costs no measurement."""
    from fusionkit_bench.mc2 import chart, report, timeline

    title = found.title(options)
    parts = [title, report.table(found.measurements) if found.measurements else ""]
    text = "\n\n".join([*filter(None, parts), *([report.grid(found.judged)] if found.judged else [])])
    if options.json:
        report.write(options.json, found.measurements, found.judged, found.machine)
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text + "\n", encoding="utf-8")
    print(text)
    if options.timeline and found.panels:
        timeline.draw(options.timeline, found.panels, title)
    if options.chart and found.measurements:
        chart.draw(options.chart, found.measurements, title)
