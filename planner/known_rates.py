"""The rates that a user names: a backend's device, or a file of the probe. What nobody has measured is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from fusionkit_planner import devices, rates
from fusionkit_planner.rates import Level, Rates

from fusionkit.errors import argument_error

THERE = "Run there: fusionkit plan probe --json probe.json, and give --device probe.json"
LINK = "--link DEVICES:GB/s[:US]"
USERS = f"{LINK} of the user"


def find(name: str, links: list[str], whose: str = USERS) -> Rates:
    """Of `--device` and `--link`.

    Args:
        whose: the links are, in words.

    Raises:
        ValueError: nobody has stated or measured them.
    """
    found = rates.read(name) if name.endswith(".json") else _stated(name)
    named = [replace(_level(text), processor_seconds=found.socket_seconds) for text in links]
    levels = {level.devices: level for level in (*found.levels, *named)}
    ordered = tuple(levels[devices] for devices in sorted(levels))
    if named:
        _require_nested(ordered)
    source = {f"level of {level.devices}": whose for level in named}
    return replace(found, levels=ordered, sources={**found.sources, **source})


def _stated(name: str) -> Rates:
    known = devices.known()
    if not any(full.lower().startswith(name.lower()) for full in known) or not name:
        listed = ", ".join(sorted(known))
        raise argument_error(
            "plan train", "--device", f"one with known rates ({listed}), or a file of the probe", repr(name),
            "its rates are unknown", THERE,
        )  # fmt: skip
    model = devices.find(name)
    found = rates.of(model)
    return found if model.source else replace(found, sources={})


def _level(text: str) -> Level:
    """DEVICES:GB/s, or with the microseconds of an empty message."""
    words = text.split(":")
    try:
        count, rate, *rest = int(words[0]), float(words[1]), *map(float, words[2:])
    except (ValueError, IndexError):
        raise argument_error(
            "plan train", "--link", "DEVICES:GB/s or DEVICES:GB/s:US, such as 1024:25:5", repr(text)
        ) from None
    latency = rest[0] if rest else 0.0
    if count < 2 or not 0 < rate < math.inf or not 0 <= latency < math.inf or len(rest) > 1:
        raise argument_error(
            "plan train", "--link", "at least 2 devices, a finite rate above 0 and a finite latency of at least 0",
            repr(text), advice="Write GB/s of one device, then microseconds, such as 1024:25:5",
        )  # fmt: skip
    return Level(f"{count} devices", count, rate * 1e9, latency * 1e-6)


def _require_nested(levels: Sequence[Level]) -> None:
    """A wider level joins whole narrower ones, as a pod joins nodes."""
    for inner, outer in pairwise(levels):
        if outer.devices % inner.devices:
            raise argument_error(
                "plan train", "--link", f"of a multiple of the {inner.devices} devices that a narrower link joins",
                outer.devices, "a network joins whole nodes",
                f"Name {_rounded(outer.devices, inner.devices)} devices: fewer may be used",
            )  # fmt: skip


def _rounded(devices: int, unit: int) -> int:
    """Up, to whole units."""
    return -(-devices // unit) * unit


def require_joined(found: Rates, devices: int) -> None:
    """Refuse more devices than the rates say how they are joined."""
    most = max((level.devices for level in found.levels), default=1)
    if devices > most:
        raise argument_error(
            "plan train", "--devices", f"at most {most}, which the rates of {found.name} join", devices,
            "how fast more are joined is unknown",
            f"State it: {LINK}, such as --link {_rounded(devices, most)}:25:5",
        )  # fmt: skip
