"""The command of `fusionkit emulate` where it is a child of this process: its signals, and its exit status."""

from __future__ import annotations

import signal
import subprocess
from typing import Any


def hand_signals_to(process: subprocess.Popen[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command as well
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, frame: process.send_signal(received))


def exit_status(process: subprocess.Popen[Any]) -> int:
    """As a shell has it: 128 + N after signal N."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
