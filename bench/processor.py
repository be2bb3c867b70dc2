"""The processor that figures are of: without it none says anything."""

from __future__ import annotations

import platform
from pathlib import Path


def name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Its name, and what tells processors of one name apart. Source: proc(5)."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    found = {}
    for line in reversed(lines):  # so that the first processor's is kept
        field, _, value = line.partition(":")
        found[field.strip()] = value.strip()
    if "model name" not in found:
        return platform.machine()
    return f"{found['model name']} (family {found.get('cpu family')}, model {found.get('model')})"
