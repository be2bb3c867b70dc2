"""The command `fusionkit`: one file per sub-command, each with `NAME`, `HELP`, `add_arguments` and `run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fusionkit.cli import bench, doctor, emulate, explain, ops, parity, plan
from fusionkit.errors import FusionkitError

COMMANDS = (ops, explain, doctor, parity, bench, plan, emulate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; its number is the process's exit status."""
    parser = argparse.ArgumentParser(prog="fusionkit", description="Fused LLM ops, one name on every device.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except (FusionkitError, ValueError, TypeError) as error:
        print(f"fusionkit: {error}", file=sys.stderr)
        return 2
    return status
