"""`fusionkit emulate`: run any command with software devices in place of accelerators."""

from __future__ import annotations

import argparse
import os
import sys

from fusionkit_emulator import DEVICE_TYPES, environment, fallbacks

from fusionkit.errors import nearest

HELP = "run a command on emulated devices, which are software: fusionkit emulate TYPE --devices 8 -- python train.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device_type", metavar="TYPE", help=" or ".join(DEVICE_TYPES))
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="how many devices (default: 1)")
    sizes = f"of each device, in {', '.join(environment.UNITS)} (default: 64GiB)"
    parser.add_argument("--memory", default="64GiB", metavar="SIZE", help=sizes)
    parser.add_argument("--sync", action="store_true", help="each kernel ends before the next is queued; for debugging")
    parser.add_argument("--unchecked", action="store_true", help="host code may touch device memory")
    waits = "after which a collective whose peer is missing fails (default: 300)"
    parser.add_argument("--timeout", type=int, default=300, metavar="SECONDS", help=waits)
    listed = "list what fell back to CPU kernels: from stderr, and from the log files that match PATTERN"
    parser.add_argument("--fallbacks", nargs="?", const="", metavar="PATTERN", help=listed)
    parser.add_argument(
        "command", nargs=argparse.PARSER, metavar="COMMAND", help="the command and its arguments, after --"
    )


def run(options: argparse.Namespace) -> int:
    """Replaces this process by the command, so that exit status and signals are the command's own."""
    memory = _check(options)
    command: list[str] = options.command[options.command[0] == "--" :]
    if not command:
        raise ValueError("emulate: COMMAND must follow --, got nothing. Write: -- python train.py")
    environment.require_built(command)
    variables = environment.variables(
        options.device_type, options.devices, memory, options.timeout, options.sync, options.unchecked, os.environ
    )
    devices = f"{options.devices} device{'s' if options.devices > 1 else ''} of {environment.in_gib(memory)}"
    print(f"fusionkit: emulated {options.device_type}, {devices}: a software stand-in, no hardware", file=sys.stderr)
    sys.stderr.flush()
    try:
        if options.fallbacks is not None:
            return int(fallbacks.run(command, {**os.environ, **variables}, options.fallbacks))
        os.execvpe(command[0], command, {**os.environ, **variables})
    except OSError as error:
        raise ValueError(f"emulate: COMMAND must be a program, got {command[0]!r}: {error.strerror}") from None


def _check(options: argparse.Namespace) -> int:
    """The bytes of a device, when all options are right."""
    if options.device_type not in DEVICE_TYPES:
        known = nearest(options.device_type, DEVICE_TYPES)
        raise ValueError(f"emulate: no device type is called {options.device_type!r}; {known}")
    for name in ("devices", "timeout"):
        if getattr(options, name) < 1:
            raise ValueError(f"emulate: --{name} must be at least 1, got {getattr(options, name)}")
    return int(environment.parse_memory(options.memory))
