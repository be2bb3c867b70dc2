"""The command `fusionkit`: one file per sub-command, each with `NAME`, `HELP`, `add_arguments` and `run`.

A name of two words, such as "bench mc2", makes a command of its own beside the one of its first word.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

import fusionkit
from fusionkit import extras
from fusionkit.cli import bench, bench_collectives, bench_mc2, doctor, emulate, explain, ops, parity, plan
from fusionkit.errors import FusionkitError

COMMANDS = (ops, explain, doctor, parity, bench, bench_mc2, bench_collectives, plan, emulate)


NOBODY_READS = 141  # 128 + SIGPIPE, as a shell reports a command whose reader has left


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; its number is the process's exit status."""
    _show_what_the_terminal_can()
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            if sys.stdout is not None:  # a closed descriptor: `fusionkit ops >&-`
                sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS


def _run(arguments: Sequence[str]) -> int:
    options = parser().parse_args(joined(arguments))
    try:
        status: int = options.run(options)
    except BrokenPipeError:
        raise
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        absent = extras.missing(package) if package in extras.EXTRAS else None
        print(f"fusionkit: {absent or error}", file=sys.stderr)
        return 2
    except (FusionkitError, ValueError, TypeError, OSError) as error:
        print(f"fusionkit: {error}", file=sys.stderr)
        return 2
    return status


def _show_what_the_terminal_can() -> None:
    """A character that the output's encoding does not have is written as an escape, and ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="fusionkit", description="Fused LLM ops, one name on every device.")
    made.add_argument("--version", action="version", version=f"fusionkit {fusionkit.__version__}")
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
