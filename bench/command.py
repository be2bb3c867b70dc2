"""`fusionkit bench`: each op beside the machine's ceiling and its peers, and what dispatch costs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionkit import extras, registry
from fusionkit.dtypes import full_dtype
from fusionkit.ops import OP_NAMES

if TYPE_CHECKING:  # pytest-benchmark is an extra
    from fusionkit_bench.result import Result
    from fusionkit_bench.subject import Subject
    from fusionkit_bench.target import Judged

HELP = "measure the ops beside the machine's ceiling and their peers"
DISPATCH = "dispatch"
ROUNDS, QUICK_ROUNDS = 7, 3
QUICK = "--quick: one call of each op in few rounds, for a first look. Without it every call is measured."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="*", metavar="OP", help=f"ops, or {DISPATCH!r} (default: all of them)")
    parser.add_argument("--backend", default="cpu", help="whose kernels (default: cpu)")
    parser.add_argument("--case", default=".*", metavar="REGEX", help="only the calls whose name it matches whole")
    parser.add_argument("--dtype", type=full_dtype, help="only this dtype")
    quick = f"of these one call of each op, at Llama 2 13B's sizes, in {QUICK_ROUNDS} rounds"
    parser.add_argument("--quick", action="store_true", help=quick)
    rounds = f"interleaved rounds (default: {ROUNDS}; with --quick {QUICK_ROUNDS})"
    parser.add_argument("--rounds", type=int, help=rounds)
    parser.add_argument("--threads", type=int, help="of every contestant (default: the physical cores)")
    parser.add_argument("--no-peers", action="store_true", help="kernels and ceilings alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every timing, for `pytest-benchmark compare`")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="each op beside its ceiling and peers, as PNG")
    parser.add_argument("--table", type=Path, metavar="FILE", help="the tables as Markdown")


def run(options: argparse.Namespace) -> int:
    known = [*OP_NAMES, DISPATCH]
    for what in options.what:
        if what not in known:
            raise ValueError(f"bench: OP must be one of {', '.join(known)}, got {what!r}")
    if options.rounds is None:
        options.rounds = QUICK_ROUNDS if options.quick else ROUNDS
    if options.rounds < 1:
        raise ValueError(f"bench: --rounds must be at least 1, got {options.rounds}")
    if absent := extras.missing("pytest_benchmark", "paddle", *(["matplotlib"] if options.chart else [])):
        raise ValueError(f"bench: {absent}")
    what = options.what or known
    if DISPATCH in what:
        from fusionkit_bench import dispatch

        dispatch.measure(max(options.rounds, 15))
    ops = [op for op in what if op != DISPATCH]
    if ops:
        _measure_ops(options, ops)
    return 0


def _measure_ops(options: argparse.Namespace, ops: list[str]) -> None:
    from fusionkit_bench import contestants, rounds, target
    from fusionkit_bench.worker import ALONE, KINDS, LIBRARIES, Worker, WorkerEnded
    from tqdm import tqdm

    registry.require_name(options.backend, "--backend")
    device = contestants.device_of(options.backend)
    chosen = _chosen(options, ops)
    num_threads = options.threads or device.num_threads()
    wanted = [ALONE, LIBRARIES] if options.no_peers else list(KINDS)
    if extras.missing("torch"):
        wanted = [kind for kind in wanted if kind.contestants != "torch"]
    workers = [Worker(kind, options.backend, num_threads) for kind in wanted]
    results: list[Result] = []
    try:
        for subject in tqdm(chosen, unit="call"):
            try:
                results += rounds.measure(workers, subject, options.rounds)
            except WorkerEnded as error:
                print(f"bench: {error}; this call is left out", file=sys.stderr)
                for worker in workers:
                    worker.close()
                workers = [Worker(kind, options.backend, num_threads) for kind in wanted]
    except KeyboardInterrupt:
        print(f"bench: interrupted; {len(results)} results of {len(chosen)} calls follow", file=sys.stderr)
    finally:
        for worker in workers:
            worker.close()
    if results:
        _report(options, results, list(target.judge(device.TARGETS, results)), num_threads)


def _chosen(options: argparse.Namespace, ops: list[str]) -> list[Subject]:
    from fusionkit_bench.subject import leading, subjects

    found = [each for each in subjects(ops) if re.fullmatch(options.case, each.case_name)]
    found = [each for each in found if options.dtype in (None, each.dtype)]
    if not found:
        raise ValueError(f"bench: no call of {', '.join(ops)} has a name like --case {options.case!r} and that --dtype")
    return leading(found) if options.quick else found


def _report(options: argparse.Namespace, results: Sequence[Result], judged: Sequence[Judged], num_threads: int) -> None:
    from fusionkit_bench import chart, record, roofs, table

    info = record.machine()
    title = record.title(info, num_threads, options.rounds, options.quick)
    heading = f"{title}\n\n{QUICK}" if options.quick else title
    text = f"{heading}\n\n{roofs.table(results)}\n\n{table.table(results)}\n\n{table.targets(judged)}"
    if options.json:  # first: a screen or a picture that fails costs no measurement
        record.write(options.json, results, info, title)
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text + "\n", encoding="utf-8")
    print(text)
    if options.chart:
        chart.draw(options.chart, chart.rows(results), title)
