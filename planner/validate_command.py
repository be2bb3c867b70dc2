"""`fusionkit plan validate`: the time and memory models against steps that were measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "fit the models on some measured steps, and judge them by others"
SCREEN = Path("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, what in (("--fit", "that the rates are fitted on"), ("--judge", "that are predicted")):
        required = name == "--judge"
        parser.add_argument(
            name, help=f"measured steps {what}", nargs="+", type=Path, default=[], required=required, metavar="CSV"
        )
    parser.add_argument(
        "--splits",
        type=int,
        metavar="N",
        help="cross validation: N times, a random half of --judge joins --fit, and the other half is judged",
    )
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=SCREEN,
        metavar="FILE",
        help="everything as JSON; instead of text if no FILE",
    )


def run(options: argparse.Namespace) -> int:
    from fusionkit_planner.result_files import require_writable, write_json
    from fusionkit_planner.validate import report, rows, splits

    if options.json != SCREEN:
        require_writable("plan validate", json=options.json)
    _check(options)
    fit, judge = rows.read(options.fit), rows.read(options.judge)
    if options.splits:
        halves = splits.validate(fit, judge, options.splits)
        lines, figures = splits.text(halves), splits.as_json(halves)
    else:
        found = report.validate(fit, judge)
        lines, figures = report.text(found), report.as_json(found)
    if options.json == SCREEN:
        print(json.dumps(figures, indent=1))
        return 0
    print("\n".join(lines))
    if options.json:
        write_json(options.json, figures)
    return 0


def _check(options: argparse.Namespace) -> None:
    from fusionkit.errors import argument_error

    if options.splits is not None and options.splits < 1:
        raise argument_error("plan validate", "--splits", "at least 1", options.splits)
    if not options.fit and not options.splits:
        rule, advice = "files with measured steps", "Give some, or divide those of --judge by --splits 20"
        raise argument_error("plan validate", "--fit", rule, "none", advice=advice)
