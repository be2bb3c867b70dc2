"""`fusionkit plan validate`: the time and memory models against steps that were measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "fit the models on some measured steps, and judge them by others"
SCREEN = Path("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, what in (("--fit", "that the rates are fitted on"), ("--judge", "that are predicted")):
        parser.add_argument(name, help=f"measured steps {what}", nargs="+", type=Path, required=True, metavar="CSV")
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
    from fusionkit_planner.validate import report, rows

    if options.json != SCREEN:
        require_writable("plan validate", json=options.json)
    found = report.validate(rows.read(options.fit), rows.read(options.judge))
    if options.json == SCREEN:
        print(json.dumps(report.as_json(found), indent=1))
        return 0
    print("\n".join(report.text(found)))
    if options.json:
        write_json(options.json, report.as_json(found))
    return 0
