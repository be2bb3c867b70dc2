"""A timeline of some steps: what a process computes, what is on its way meanwhile, and what the process waits for.

While nothing is traced a span costs one comparison. On a device a span ends when the device has done its work, so a
traced step is slower than others: what would overlap on the device's own queue does not.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import paddle

COMPUTE, COMMUNICATION, BUBBLE, EXPOSED = "compute", "communication", "bubble", "exposed communication"
# The last two are waits, for another stage and for sums, new values and matrices; they share a lane.
LANES = {COMPUTE: 0, COMMUNICATION: 1, BUBBLE: 2, EXPOSED: 2}
LANE_NAMES = ("compute", "communication", "waiting")


@dataclass(frozen=True)
class Event:
    """Seconds since the trace began."""

    lane: str
    name: str
    start: float
    end: float


class Trace:
    """The events of one process, between `begin` and `end`."""

    def __init__(self) -> None:
        self._origin: float | None = None
        self._events: list[Event] = []

    @property
    def is_on(self) -> bool:
        return self._origin is not None

    def begin(self) -> None:
        """All processes call this at one time."""
        self._origin, self._events = time.perf_counter(), []

    def end(self) -> list[Event]:
        self._origin = None
        return self._events

    @contextlib.contextmanager
    def span(self, lane: str, name: str) -> Iterator[None]:
        """What happens inside the block."""
        if self._origin is None:
            yield
            return
        finish = self.start(lane, name)
        yield
        if lane == COMPUTE and paddle.get_device() != "cpu":
            paddle.device.synchronize()
        finish()

    def start(self, lane: str, name: str) -> Callable[[], None]:
        """What goes on beside others, until the function that this returns is called."""
        if self._origin is None:
            return _nothing
        origin, start = self._origin, time.perf_counter()

        def finish() -> None:
            self._events.append(Event(lane, name, start - origin, time.perf_counter() - origin))

        return finish


def _nothing() -> None:
    pass


def to_text(events: Sequence[Event]) -> str:
    return json.dumps([asdict(event) for event in events])


def from_text(text: str) -> list[Event]:
    return [Event(**event) for event in json.loads(text)]


def chrome(ranks: Sequence[Sequence[Event]], names: Sequence[str]) -> str:
    """The Chrome trace of all ranks: each is a process there, with three lanes."""
    found: list[dict[str, object]] = []
    for rank, (events, name) in enumerate(zip(ranks, names, strict=True)):
        found.append({"name": "process_name", "ph": "M", "pid": rank, "args": {"name": name}})
        for lane, text in enumerate(LANE_NAMES):
            found.append({"name": "thread_name", "ph": "M", "pid": rank, "tid": lane, "args": {"name": text}})
        for event in sorted(events, key=lambda event: event.start):
            times = {"ts": event.start * 1e6, "dur": (event.end - event.start) * 1e6}
            found.append(
                {"name": event.name, "cat": event.lane, "ph": "X", "pid": rank, "tid": LANES[event.lane], **times}
            )
    return json.dumps({"traceEvents": found, "displayTimeUnit": "ms"})


def in_words(events: Sequence[Event], name: str) -> str:
    """Where a rank's time went. What is on its way and is not waited for is hidden."""
    whole = max((event.end for event in events), default=0.0)
    if whole == 0:
        return f"{name}: nothing was traced"

    def share(*lanes: str) -> float:
        return covered([event for event in events if event.lane in lanes]) / whole

    return (
        f"{name}: {whole:.3g} s, of which it computes for {share(COMPUTE):.0%}, waits for other stages for "
        f"{share(BUBBLE):.0%} (bubbles), and for sums and new values for {share(EXPOSED):.0%} (exposed communication). "
        f"Something is on its way for {share(COMMUNICATION):.0%}"
    )


def covered(events: Sequence[Event]) -> float:
    """Seconds in which at least one of them goes on."""
    total, until = 0.0, 0.0
    for event in sorted(events, key=lambda event: event.start):
        total += max(0.0, event.end - max(event.start, until))
        until = max(until, event.end)
    return total
