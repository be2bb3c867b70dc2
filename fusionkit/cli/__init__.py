"""The command `fusionkit`: the core's own sub-commands, one file each; other packages add theirs. See commands.py."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Collection, Sequence

import fusionkit
from fusionkit import extras
from fusionkit.cli import commands
from fusionkit.cli.commands import Command
from fusionkit.errors import FusionkitError

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
    known = commands.offered()
    name, arguments = joined(arguments, known)
    loaded = [commands.load(each) for each in ([name] if name in known else known)]
    if name in known and loaded[0].module is None:
        print(f"fusionkit: {name} is {loaded[0].help}", file=sys.stderr)
        return 2
    for own, why in commands.refused().items():
        if name not in known or name == own:
            print(f"fusionkit: {why}", file=sys.stderr)
    options = parser(loaded).parse_args(arguments)
    try:
        status: int = options.fusionkit_run(options)
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


def joined(arguments: Sequence[str], known: Collection[str]) -> tuple[str, Sequence[str]]:
    """The command's name, and the arguments with its words as one where it has several."""
    for count in range(len(arguments), 1, -1):
        if (together := " ".join(arguments[:count])) in known:
            return together, [together, *arguments[count:]]
    return (arguments[0] if arguments else ""), arguments


def _show_what_the_terminal_can() -> None:
    """A character that the output's encoding does not have is written as an escape, and ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def parser(loaded: Sequence[Command]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="fusionkit", description="Fused LLM ops, one name on every device.")
    made.add_argument("--version", action="version", version=f"fusionkit {fusionkit.__version__}")
    listed = made.add_subparsers(required=True, metavar="COMMAND")
    for command in loaded:
        about = command.help.replace("%", "%%")  # argparse formats the one, and not the other
        sub = listed.add_parser(command.name, help=about, description=command.help, epilog=_longer(command.name))
        if command.module is not None:
            command.module.add_arguments(sub)
            sub.set_defaults(fusionkit_run=command.module.run)
    return made


def _longer(name: str) -> str | None:
    """For the help of a command: those whose name begins with its."""
    found = [commands.load(each) for each in commands.offered() if each.startswith(f"{name} ")]
    return " ".join(["See also", *(f"`fusionkit {each.name}`: {each.help}." for each in found)]) if found else None
