"""`fusionkit emulate`: run any command with software devices in place of accelerators."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from fusionkit_emulator import DEVICE_TYPES, environment, fallbacks, rehearsal
from fusionkit_planner import known_rates
from fusionkit_planner.rates import Rates

from fusionkit import registry
from fusionkit.errors import nearest
from fusionkit.rehearsal import NOTE

HELP = "run a command on emulated devices, which are software: fusionkit emulate TYPE --devices 8 -- python train.py"

DEFAULT_RATES = "910b"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device_type", metavar="TYPE", help=" or ".join(DEVICE_TYPES))
    parser.add_argument("--devices", type=int, metavar="N", help="how many devices (default: 1)")
    sizes = f"of each device, in {', '.join(environment.UNITS)}, or a device model (default: 64GiB)"
    parser.add_argument("--memory", default="64GiB", metavar="SIZE", help=sizes)
    parser.add_argument("--sync", action="store_true", help="each kernel ends before the next is queued; for debugging")
    parser.add_argument("--unchecked", action="store_true", help="host code may touch device memory")
    waits = "after which a collective whose peer is missing fails (default: 300)"
    parser.add_argument("--timeout", type=int, default=300, metavar="SECONDS", help=waits)
    listed = "list what fell back to CPU kernels: from stderr, and from the log files that match PATTERN"
    parser.add_argument("--fallbacks", nargs="?", const="", metavar="PATTERN", help=listed)
    rehearses = "kernels and collectives are checked and compute nothing; memory and mistakes are reported"
    parser.add_argument("--rehearse", action="store_true", help=rehearses)
    parser.add_argument("--report", metavar="FILE", help="of a rehearsal, as JSON")
    parser.add_argument("--trace", metavar="FILE", help="of a rehearsal's last step in simulated time, for Chrome")
    uneven = "of a rehearsal: stages of the pipeline are meant to have unequal numbers of layers"
    parser.add_argument("--uneven", action="store_true", help=uneven)
    rates = f"whose rates it takes: a name or a file of `plan probe` (default for npu: {DEFAULT_RATES})"
    parser.add_argument("--device", metavar="NAME", help=rates)
    joined = f"{known_rates.LINK}: so many devices are joined at this rate, as for plan train"
    parser.add_argument("--link", action="append", default=[], metavar="LINK", help=joined)
    parser.add_argument(
        "command", nargs=argparse.PARSER, metavar="COMMAND", help="the command and its arguments, after --"
    )


def run(options: argparse.Namespace) -> int:
    """Replaces this process by the command, so that exit status and signals are the command's own."""
    memory = _check(options)
    rates = _rates(options)
    num_devices = options.devices or 1
    command: list[str] = options.command[options.command[0] == "--" :]
    if not command:
        raise ValueError("emulate: COMMAND must follow --, got nothing. Write: -- python train.py")
    environment.require_built(command)
    variables = environment.variables(
        options.device_type, num_devices, memory, options.timeout, options.sync, options.unchecked, os.environ
    )
    devices = f"{num_devices} device{'s' if num_devices > 1 else ''} of {environment.in_gib(memory)}"
    what = NOTE if options.rehearse else "a software stand-in, no hardware"
    print(f"fusionkit: emulated {options.device_type}, {devices}: {what}", file=sys.stderr)
    sys.stderr.flush()
    try:
        run_command = rehearsal.passed_through if options.fallbacks is None else partial(_counted, options.fallbacks)
        if options.rehearse:
            given = {**os.environ, **variables}
            return rehearsal.run(command, given, run_command, options.report, options.trace, rates, options.uneven)
        if options.fallbacks is not None:
            return run_command(command, {**os.environ, **variables})
        os.execvpe(command[0], command, {**os.environ, **variables})
    except OSError as error:
        raise ValueError(f"emulate: COMMAND must be a program, got {command[0]!r}: {error.strerror}") from None


def _counted(logs: str, command: Sequence[str], variables: Mapping[str, str]) -> int:
    return fallbacks.run(command, variables, logs)


def _check(options: argparse.Namespace) -> int:
    """The bytes of a device, when all options are right."""
    if options.device_type not in DEVICE_TYPES:
        known = nearest(options.device_type, DEVICE_TYPES)
        raise ValueError(f"emulate: no device type is called {options.device_type!r}; {known}")
    for name in ("devices", "timeout"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"emulate: --{name} must be at least 1, got {value}")
    if options.rehearse and options.devices is None:
        advice = "Write --devices 8, as many as the command uses"
        raise ValueError(f"emulate: --devices must be given with --rehearse, got none. {advice}")
    if options.report is not None and not options.rehearse:
        raise ValueError("emulate: --report must come with --rehearse, whose findings it is for. Add --rehearse")
    if options.uneven and not options.rehearse:
        raise ValueError("emulate: --uneven must come with --rehearse, which compares stages. Add --rehearse")
    if options.trace is not None and not options.rehearse:
        raise ValueError("emulate: --trace must come with --rehearse, whose step it shows. Add --rehearse")
    if (options.device or options.link) and options.trace is None:
        raise ValueError("emulate: --device and --link must come with --trace, which they price. Add --trace FILE")
    for name in ("report", "trace"):
        path = getattr(options, name)
        if path is not None and (Path(path).is_dir() or not Path(path).parent.is_dir()):
            raise ValueError(f"emulate: --{name} must be a file in a folder that is there, got {path!r}")
    return _memory(options.memory)


def _rates(options: argparse.Namespace) -> Rates | None:
    """Of the devices of `--trace`; asked for before the command runs."""
    if options.trace is None:
        return None
    name = options.device or (DEFAULT_RATES if options.device_type == "npu" else None)
    if name is None:
        raise ValueError(f"emulate: --device must be given with --trace on {options.device_type}. {known_rates.THERE}")
    found = known_rates.find(name, options.link)
    known_rates.require_joined(found, options.devices)
    return found


def _memory(text: str) -> int:
    """Bytes of a size, or of a device model that a backend knows."""
    if text.endswith(tuple(environment.UNITS)):
        return environment.parse_memory(text)
    models = {name: model for backend in registry.loaded() for name, model in backend.device_models.items()}
    return int(models[text].memory_bytes if text in models else environment.parse_memory(text))
