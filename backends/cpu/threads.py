"""How many threads a kernel uses at first: OMP_NUM_THREADS where it is set, else the cores that the process may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fusionkit import cores
from fusionkit.backend import Check
from fusionkit.errors import argument_error

VARIABLE = "OMP_NUM_THREADS"
MOST = 8192  # as csrc/threads.cc allows


def default(root: Path = cores.ROOT) -> cores.Allowed:
    """The number, and what set it.

    Raises:
        ValueError: OMP_NUM_THREADS is no number of threads.
    """
    text = _wanted(root)
    if not text:
        return cores.for_arithmetic(root)
    first = text.partition(",")[0].strip()  # a list has one entry for each nesting level
    if not first.isdecimal() or not 1 <= int(first) <= MOST:
        rule = f"a positive integer up to {MOST}"
        raise argument_error("num_threads", VARIABLE, rule, f'"{text}"', advice="Correct it or unset it")
    return cores.Allowed(int(first), VARIABLE)


def check() -> Check:
    """For `fusionkit doctor`."""
    try:
        count, source = default()
    except ValueError as error:
        return Check("threads", False, str(error), f"unset {VARIABLE}")
    return Check("threads", True, f"{count} ({source})")


def _wanted(root: Path) -> str:
    """`import paddle` sets OMP_NUM_THREADS to 1 where it is unset or a list: then the process's start counts."""
    text = os.environ.get(VARIABLE, "")
    if text != "1" or "paddle" not in sys.modules:
        return text
    entries = (root / "proc/self/environ").read_bytes().split(b"\0")
    prefix = f"{VARIABLE}=".encode()
    return next((os.fsdecode(entry[len(prefix) :]) for entry in entries if entry.startswith(prefix)), "")
