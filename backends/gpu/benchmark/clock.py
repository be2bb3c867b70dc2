"""Times contestants in interleaved rounds, so that a card that warms up slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Contestants = Mapping[str, Callable[[], Any]]
TARGET_S = 0.01  # of one reading: event timers tick in half microseconds, and launches must not be what is timed
CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Timing:
    """Median of the rounds with the 95% interval of the median (order statistics), in microseconds."""

    median_us: float
    low_us: float
    high_us: float
    rounds: int


@dataclass(frozen=True)
class NotRun:
    """Why a contestant has no time: too little memory, a backend that refuses the call, a package that is missing."""

    reason: str


Outcome = Timing | NotRun


def measure(contestants: Contestants, num_rounds: int) -> dict[str, Outcome]:
    """Warm up, then one reading of each contestant a round, in an order that turns."""
    outcomes: dict[str, Outcome] = {}
    repeats: dict[str, int] = {}
    for name, call in contestants.items():
        try:
            repeats[name] = _warm_up(call)
        except (RuntimeError, ImportError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            outcomes[name] = NotRun(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}")
            _free()
    readings: dict[str, list[float]] = {name: [] for name in repeats}
    names = list(repeats)
    for round_ in range(num_rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            readings[name].append(_elapsed_us(contestants[name], repeats[name]))
    return outcomes | {name: _timing(values) for name, values in readings.items()}


def _warm_up(call: Callable[[], Any]) -> int:
    """Compile, and find how many calls a reading needs."""
    call()
    if not CUDA:
        return 1
    call()
    elapsed = _elapsed_us(call, 1) * 1e-6
    return max(1, min(1000, int(TARGET_S / max(elapsed, 1e-7))))


def _elapsed_us(call: Callable[[], Any], repeats: int) -> float:
    """Of one call, by the device's own clock where there is one."""
    if not CUDA:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats * 1e6
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    for _ in range(repeats):
        call()
    after.record()
    torch.cuda.synchronize()
    return float(before.elapsed_time(after)) * 1e3 / repeats


def _timing(values: list[float]) -> Timing:
    """Ranks n/2 -+ 0.98 sqrt(n) enclose the median with 95%."""
    ordered, n = sorted(values), len(values)
    spread = 0.98 * math.sqrt(n)
    low, high = max(0, math.floor(n / 2 - spread)), min(n - 1, math.ceil(n / 2 + spread) - 1)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return Timing(middle, ordered[low], ordered[max(low, high)], n)


def _free() -> None:
    if CUDA:
        torch.cuda.empty_cache()


def peak_bytes(call: Callable[[], Any]) -> int:
    """What a call holds at its peak beyond what is there before it; 0 without a card."""
    if not CUDA:
        call()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
