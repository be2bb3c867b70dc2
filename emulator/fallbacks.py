"""Which ops ran on Paddle's CPU kernels because the emulated device has none: counted from Paddle's own log.

Paddle says so once a call, on stderr: kernel_factory.cc, verbosity 3.
"""

from __future__ import annotations

import glob
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO

from fusionkit_emulator.child import exit_status, hand_signals_to

_LINE = re.compile(
    rb"I\d{4} [\d:.]+ +\d+ kernel_factory\.cc:\d+\] missing \w+ kernel: (\w+), "
    rb"expected_kernel_key:\([^\n]*?(\w+)\), fallbacking to CPU one[^\n]*\n"
)
_UNFINISHED = re.compile(rb"I(?:\d{0,4}|\d{4} [^\n]*)\Z")  # may yet become such a line

Counts = Counter[tuple[str, str]]


def run(command: Sequence[str], environment: Mapping[str, str], logs: str) -> int:
    """Run the command, print what fell back, and return its exit status (128 + N after signal N).

    Its stderr passes through at once and unchanged, but for the counted lines. `logs` is a pattern of files that
    a launcher's workers write; what they gain during the run is counted too.
    """
    # Under 16 characters: Paddle 3.3.1 holds glog twice, and a longer value is freed twice when the process ends.
    glog = {"GLOG_vmodule": "kernel_fact*=3", "GLOG_minloglevel": "0"}
    before = {path: os.path.getsize(path) for path in glob.glob(logs)}
    counts: Counts = Counter()
    with subprocess.Popen(command, env={**environment, **glog}, stderr=subprocess.PIPE) as process:
        hand_signals_to(process)
        assert process.stderr is not None
        _pass_through(process.stderr, counts)
    for path in sorted(glob.glob(logs)):
        _count_file(path, before.get(path, 0), counts)
    print(table(counts), file=sys.stderr)
    return exit_status(process)


def _pass_through(source: IO[bytes], counts: Counts) -> None:
    held = b""
    while part := os.read(source.fileno(), 1 << 16):
        rest = take(held + part, counts)
        unfinished = _UNFINISHED.search(rest)
        end = unfinished.start() if unfinished else len(rest)
        held = rest[end:]
        sys.stderr.buffer.write(rest[:end])
        sys.stderr.buffer.flush()
    sys.stderr.buffer.write(held)
    sys.stderr.buffer.flush()


def take(text: bytes, counts: Counts) -> bytes:
    """Count the fallbacks in a piece of log; the text without them."""
    for op, dtype in _LINE.findall(text):
        counts[op.decode(), dtype.decode()] += 1
    return _LINE.sub(b"", text)


def _count_file(path: str, start: int, counts: Counts) -> None:
    with open(path, "rb") as file:
        file.seek(start if start <= os.path.getsize(path) else 0)  # a shorter file was written anew
        for line in file:
            take(line, counts)


def table(counts: Counts) -> str:
    if not counts:
        return "fusionkit: no op fell back to a CPU kernel"
    rows = [
        f"{count:8}  {op}  {dtype}" for (op, dtype), count in sorted(counts.items(), key=lambda row: (-row[1], row))
    ]
    title = f"fusionkit: {counts.total()} calls fell back to CPU kernels"
    return "\n".join([title, "   calls  op  dtype", *rows])
