"""How many cores this process may use: its affinity mask, and the quotas of its cgroups.

The build loads this file by its path, before anything is installed: it imports nothing of fusionkit.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")
SIBLINGS = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


class Allowed(NamedTuple):
    number: int
    source: str  # what set the number


class Quota(NamedTuple):
    cores: float  # processor time per time
    file: str


def physical_cores(root: Path = ROOT) -> list[int]:
    """The first allowed hardware thread of each physical core."""
    chosen: dict[str, int] = {}
    for thread in sorted(os.sched_getaffinity(0)):
        path = root / SIBLINGS.format(thread)
        siblings = path.read_text().strip() if path.exists() else str(thread)
        chosen.setdefault(siblings, thread)
    return list(chosen.values())


def for_arithmetic(root: Path = ROOT) -> Allowed:
    """One thread a physical core: two hardware threads of a core share its arithmetic units."""
    return _within_quota(len(physical_cores(root)), "physical cores", root)


def for_processes(root: Path = ROOT) -> Allowed:
    """One a hardware thread, as compilers want it."""
    return _within_quota(len(os.sched_getaffinity(0)), "hardware threads", root)


def _within_quota(count: int, of: str, root: Path) -> Allowed:
    """A quota of 1.5 cores allows 2: two threads that are held back do 1.5 cores' work, one thread does 1."""
    least = quota(root)
    if least is None or math.ceil(least.cores) >= count:
        return Allowed(count, f"{of} of the affinity mask")
    return Allowed(max(math.ceil(least.cores), 1), f"a quota of {least.cores:.3g} cores in {least.file}")


def quota(root: Path = ROOT) -> Quota | None:
    """The smallest of this process's cgroups and those above them, of both versions; None without one."""
    found = [each for folder in _cgroups(root) if (each := _quota_of(folder, root)) is not None]
    return min(found, default=None)


def _quota_of(folder: PurePosixPath, root: Path) -> Quota | None:
    both = _numbers(root, folder / "cpu.max")
    if len(both) == 2:  # "max 100000" is none
        return Quota(both[0] / both[1], str(folder / "cpu.max"))
    file = folder / "cpu.cfs_quota_us"
    time, period = _numbers(root, file), _numbers(root, folder / "cpu.cfs_period_us")
    return Quota(time[0] / period[0], str(file)) if time and period else None


def _numbers(root: Path, file: PurePosixPath) -> list[int]:
    """Those above zero: version 1 writes -1 for no quota."""
    try:
        words = _below(root, file).read_text().split()
    except OSError:  # the topmost cgroup has no such file
        return []
    return [int(word) for word in words if word.isdecimal() and int(word) > 0]


def _cgroups(root: Path) -> Iterator[PurePosixPath]:
    """The folders of this process's cgroups that may hold a quota, with those above, up to where they are mounted."""
    paths = _paths(root)
    for line in _lines(root, "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        shown, mounted = (PurePosixPath(_unescaped(field)) for field in left.split()[3:5])
        kind, _, options = right.split(maxsplit=2)
        is_ours = kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(","))
        if not is_ours or kind not in paths:
            continue
        # A path outside of what is mounted is that of another namespace: what is mounted is the process's own.
        inside = paths[kind].relative_to(shown) if paths[kind].is_relative_to(shown) else PurePosixPath()
        folder = mounted if ".." in inside.parts else mounted / inside
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(mounted))


def _paths(root: Path) -> dict[str, PurePosixPath]:
    """File system type -> this process's path in the hierarchy that limits processor time."""
    paths = {}
    for line in _lines(root, "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths["cgroup2"] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = PurePosixPath(path)
    return paths


def _lines(root: Path, file: str) -> list[str]:
    try:
        return (root / file).read_text().splitlines()
    except OSError:
        return []


def _below(root: Path, path: PurePosixPath) -> Path:
    return root / path.relative_to("/")


def _unescaped(field: str) -> str:
    """mountinfo writes a space as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
