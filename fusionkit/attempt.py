"""Tries what doctor vouches for. Each attempt has a process of its own, so that a crash there is a finding."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from fusionkit.backend import Check
from fusionkit.frameworks import paddle_home

TIMEOUT = 180.0  # seconds; importing Paddle takes one to three, and up to thirty from a cold disk
LATE = "did not end within"


def tried(name: str, code: str, fix: str) -> Check:
    """A line of doctor: whether the code ends well. `fix` is for failures whose cause is none of the known ones."""
    passed, found = attempt(code)
    if not passed and "SettingError" in found:
        fix = "correct that setting"
    elif found.startswith(LATE):
        fix = "try again when the machine does less, and report it if it stays so"
    elif not passed and "paddle" in code and (problem := paddle_home.unusable()):
        found, fix = problem
    return Check(name, passed, found, fix)


def attempt(code: str) -> tuple[bool, str]:
    """Whether Python code ends well, and one line: the last that it printed, or what went wrong."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", code],  # -P: not the sources of the folder where it runs
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return False, f"{LATE} {TIMEOUT:g} s"
    if ended.returncode < 0:
        return False, f"died of signal {-ended.returncode}"
    lines = [line for line in (ended.stderr if ended.returncode else ended.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)] if ended.returncode else []
    return ended.returncode == 0, (errors or lines or [f"ended with status {ended.returncode}"])[-1].strip()
