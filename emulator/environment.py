"""What the emulator reads from the environment, and the environment that a command is given."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from fusionkit import extras

DEVICE_TYPES = ("gcu", "npu")
PREFIX = "FUSIONKIT_EMULATOR_"
# Name -> the values it may have; () where the value is a number that the library checks.
SETTINGS: dict[str, tuple[str, ...]] = {
    f"{PREFIX}DEVICE": DEVICE_TYPES,
    f"{PREFIX}DEVICES": (),
    f"{PREFIX}MEMORY": (),
    f"{PREFIX}SYNC": ("0", "1"),
    f"{PREFIX}UNCHECKED": ("0", "1"),
    f"{PREFIX}TIMEOUT": (),
    f"{PREFIX}REHEARSE": ("0", "1"),
    f"{PREFIX}RECORD": (),
    f"{PREFIX}TRACE": ("0", "1"),
    f"{PREFIX}FLASH_ATTENTION_ARGUMENTS": ("10", "13"),
}
PACKAGE = Path(__file__).parent
LIBRARY = (
    PACKAGE / "lib" / "libfusionkit_emulator.so"
)  # alone there: Paddle takes every library of the folder for a plugin
BUILD_INFO = PACKAGE / "build_info.json"
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_memory(text: str) -> int:
    """Bytes of a size such as 64GiB or 1.5TiB.

    Raises:
        ValueError: no number with one of the units; decimal units (GB) are refused, because cards are sold in GiB.
    """
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})", text)
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"emulate: --memory must be a number with {', '.join(UNITS)}, got {text!r}. Write 64GiB")
    return size


def in_gib(size: int) -> str:
    """As a person reads it: 64.0 GiB, 512.0 MiB."""
    unit = next((unit for unit in reversed(UNITS) if size >= UNITS[unit] and unit != "TiB"), "KiB")
    return f"{size / UNITS[unit]:.1f} {unit}"


def variables(
    device_type: str, devices: int, memory: int, timeout: int, sync: bool, unchecked: bool, outer: Mapping[str, str]
) -> dict[str, str]:
    """What is set for the command; everything else of `outer` stays as it is."""
    flags = {f"{PREFIX}SYNC": str(int(sync)), f"{PREFIX}UNCHECKED": str(int(unchecked))}
    folders = [str(LIBRARY.parent), outer.get("LD_LIBRARY_PATH", "")]
    return {
        f"{PREFIX}DEVICE": device_type,
        f"{PREFIX}DEVICES": str(devices),
        f"{PREFIX}MEMORY": str(memory),
        f"{PREFIX}TIMEOUT": str(timeout),
        **flags,
        "CUSTOM_DEVICE_ROOT": str(LIBRARY.parent),
        # PaddleNLP opens the plugin by its bare file name.
        "LD_LIBRARY_PATH": ":".join(filter(None, folders)),
    }


def require_built(command: Sequence[str]) -> None:
    """A plugin built for another Paddle crashes inside it, so the two are compared before the command starts.

    Raises:
        ValueError: there is no library, or the command is a Python with another Paddle.
    """
    if not LIBRARY.exists() or not BUILD_INFO.exists():
        raise ValueError(f"emulate: the emulator is not built: {LIBRARY} is missing. Run: {extras.REBUILD}")
    built_for = json.loads(BUILD_INFO.read_text())["paddle_version"]
    installed = paddle_of(command[0])
    if installed not in (None, built_for):
        found = f"the emulator was built for Paddle {built_for}, and {command[0]} has Paddle {installed}"
        raise ValueError(f"emulate: {found}. Run: {extras.REBUILD}")


def paddle_of(program: str) -> str | None:
    """The version of Paddle that a Python would import; None for another program, or without Paddle."""
    if not re.fullmatch(r"python[\d.]*", os.path.basename(program)):
        return None
    code = "from importlib.metadata import version; print(version('paddlepaddle'))"
    try:
        asked = subprocess.run([program, "-c", code], capture_output=True, text=True)
    except OSError:  # the command itself will say what is wrong with its program
        return None
    return asked.stdout.strip() or None
