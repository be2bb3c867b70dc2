"""How the collective ops of this backend run, and a record of what they did: for tests and benchmarks.

with serially():              # the product and the collective one after the other
with record() as events:      # what was computed and awaited, and when
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_forced: ContextVar[bool | None] = ContextVar("fusionkit_cpu_overlap", default=None)
_events: ContextVar[list[Event] | None] = ContextVar("fusionkit_cpu_overlap_events", default=None)


@dataclass(frozen=True)
class Event:
    """A span of time in one lane ("compute", "wait", "transfer"), in seconds of `time.perf_counter`."""

    lane: str
    label: str
    begin_s: float
    end_s: float


@contextmanager
def serially() -> Iterator[None]:
    """The ops called inside do not overlap: on every rank, or the ranks do not agree."""
    with _force(False):
        yield


@contextmanager
def overlapped() -> Iterator[None]:
    """The ops called inside overlap, also where that is slower: on every rank, or the ranks do not agree."""
    with _force(True):
        yield


@contextmanager
def _force(overlaps: bool) -> Iterator[None]:
    token = _forced.set(overlaps)
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> bool | None:
    """What `serially` or `overlapped` asks for, or None."""
    return _forced.get()


@contextmanager
def record() -> Iterator[list[Event]]:
    """The events of the ops called inside, in the order of their ends."""
    events: list[Event] = []
    token = _events.set(events)
    try:
        yield events
    finally:
        _events.reset(token)


@contextmanager
def span(lane: str, label: str) -> Iterator[None]:
    """Record what happens inside as one event, if anybody wants to know."""
    events = _events.get()
    if events is None:
        yield
        return
    begin = time.perf_counter()
    try:
        yield
    finally:
        events.append(Event(lane, label, begin, time.perf_counter()))
