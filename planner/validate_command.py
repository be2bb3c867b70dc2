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
    from fusionkit_planner.validate import report, rows

    found = report.validate(rows.read(options.fit), rows.read(options.judge))
    document = json.dumps(report.as_json(found), indent=1)
    if options.json == SCREEN:
        print(document)
        return 0
    print("\n".join(report.text(found)))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(document + "\n", encoding="utf-8")
    return 0
