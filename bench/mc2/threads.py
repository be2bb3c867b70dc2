"""Processor time of the threads that move data while the calling thread computes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

TASKS = Path("/proc/self/task")


def cpu_seconds_of_others() -> dict[str, float]:
    """Thread -> processor seconds so far, for every thread of this process but the calling one."""
    own = str(threading.get_native_id())
    found = {}
    for task in os.listdir(TASKS):
        if task != own:
            try:
                found[task] = _cpu_seconds(TASKS / task)
            except (FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
                continue
    return found


def spent(before: dict[str, float], after: dict[str, float]) -> float:
    """Seconds between two readings. A thread that ended in between is not counted."""
    return sum(seconds - before.get(task, 0.0) for task, seconds in after.items())


def _cpu_seconds(task: Path) -> float:
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:  # a kernel without scheduler statistics: clock ticks, usually of 10 ms
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
