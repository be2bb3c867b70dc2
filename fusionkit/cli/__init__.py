"""The command `fusionkit`: one file per sub-command, each with `NAME`, `HELP`, `add_arguments` and `run`.

A name of two words, such as "bench mc2", makes a command of its own beside the one of its first word.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fusionkit.cli import bench, bench_collectives, bench_mc2, doctor, emulate, explain, ops, parity, plan
from fusionkit.errors import FusionkitError

COMMANDS = (ops, explain, doctor, parity, bench, bench_mc2, bench_collectives, plan, emulate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; its number is the process's exit status."""
    options = parser().parse_args(joined(sys.argv[1:] if arguments is None else arguments))
    try:
        status: int = options.run(options)
    except (FusionkitError, ValueError, TypeError) as error:
        print(f"fusionkit: {error}", file=sys.stderr)
        return 2
    return status


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="fusionkit", description="Fused LLM ops, one name on every device.")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        about = {"help": command.HELP, "description": command.HELP, "epilog": longer(command.NAME)}
        sub = commands.add_parser(command.NAME, **about)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return made


def joined(arguments: Sequence[str]) -> list[str]:
    """The first two words as one where a command is called so."""
    together = " ".join(arguments[:2])
    return [together, *arguments[2:]] if together in {command.NAME for command in COMMANDS} else list(arguments)


def longer(name: str) -> str | None:
    """For the help of a command: those whose name begins with its."""
    found = [f"`fusionkit {each.NAME}`: {each.HELP}." for each in COMMANDS if each.NAME.startswith(f"{name} ")]
    return f"See also {' '.join(found)}" if found else None
