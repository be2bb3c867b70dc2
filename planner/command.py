"""`fusionkit plan`: what devices would do, from formulas and rates; one module for each question."""

from __future__ import annotations

import argparse

from fusionkit_planner import mc2_command, probe_command, train_command, validate_command

HELP = "plan for devices that need not be here: a training's layout, memory and time; what overlap can hide"
QUESTIONS = {"train": train_command, "probe": probe_command, "validate": validate_command, "mc2": mc2_command}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_subparsers(required=True, metavar="QUESTION")
    for name, module in QUESTIONS.items():
        sub = asked.add_parser(name, help=module.HELP.replace("%", "%%"), description=module.HELP)
        module.add_arguments(sub)
        sub.set_defaults(fusionkit_plan=module.run)


def run(options: argparse.Namespace) -> int:
    status: int = options.fusionkit_plan(options)
    return status
