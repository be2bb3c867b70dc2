"""`fusionkit bench collectives`: the communicator beside gloo and OpenMPI. See docs/communicator.md."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fusionkit import cores

HELP = "measure the communicator's calls beside gloo's and OpenMPI's, in one run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="*", metavar="CALL", help="all_reduce, all_gather, reduce_scatter, send_recv")
    parser.add_argument("--ranks", type=int, default=2, help="processes of each contestant (default: 2)")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: 9)")
    parser.add_argument("--largest", type=int, default=64, metavar="MIB", help="leave out larger sizes (default: 64)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="what is printed")


def run(options: argparse.Namespace) -> int:
    from fusionkit_bench import processor
    from fusionkit_bench.collectives import suite
    from fusionkit_bench.collectives.cases import CEILING, OPS, SIZES, Case
    from fusionkit_bench.collectives.group import OWN, PEERS, Group

    for what in options.what:
        if what not in OPS:
            raise ValueError(f"bench collectives: CALL must be one of {', '.join(OPS)}, got {what!r}")
    for name, least in (("ranks", 2), ("rounds", 1), ("largest", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"bench collectives: --{name} must be at least {least}, got {getattr(options, name)}")
    sizes = [size for size in SIZES if size <= options.largest << 20]
    cases = [Case(op, size) for op in (CEILING, *(options.what or OPS)) for size in sizes]
    processors = cores.for_processes().number
    ranks = f"{options.ranks} ranks on {processors} processors, load {os.getloadavg()[0]:.1f}"
    lines = [f"{processor.name()}, {ranks}; medians of {options.rounds} rounds"]
    lines += [f"{kind.name} is left out. It needs {kind.missing()}" for kind in PEERS if kind.missing()]
    groups: list[Group] = []
    try:
        for kind in (*OWN, *PEERS):
            if not kind.missing():
                groups.append(Group(kind, options.ranks))
        times = suite.measure(groups, cases, options.rounds)
        lines += [suite.table(times, groups, cases, options.ranks, tcp) for tcp in (False, True)]
    finally:
        for group in groups:
            group.close()
    text = "\n\n".join(lines)
    if options.table:  # first: a screen that fails costs no measurement
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0
