"""What ran, what was refused, what fell back, and why: one count a call, per (op, backend, reason).

Beside it stands which way a kernel went where it has several: those counts are no calls.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping

Entry = tuple[str, str, str]  # op, backend, reason


class Counter:
    """Counts from many threads without a lock: `next(calls)` is one C call, 25 ns, and `add()` the same, 50 ns.

    Reading an `itertools.count` consumes one value, so reads are counted and taken off.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._base = 0
        self.calls = itertools.count()
        self.add = self.calls.__next__

    @property
    def value(self) -> int:
        with self._lock:
            seen = self.add() - self._base
            self._base += 1
            return seen

    def reset(self) -> None:
        with self._lock:
            self._base = self.add() + 1


class Ledger(Mapping[Entry, int]):
    """A mapping (op, backend, reason) -> number of calls. Calls in a traced graph count once, when traced.

    The reason is "chosen" for a first choice, "fallback: ..." where a wanted backend refused, "not offered: ..." where
    the device's backend does not have the op, and "refused: ..." with backend "none" where nothing could run.
    The sum of all counts is the number of calls; `ways` says how kernels with several of them went.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[Entry, Counter] = {}
        self._ways: dict[Entry, Counter] = {}

    def counter(self, op: str, backend: str, reason: str) -> Counter:
        with self._lock:
            return self._counters.setdefault((op, backend, reason), Counter())

    def way(self, op: str, backend: str, way: str) -> Counter:
        """For a kernel that has several ways: counts one of them, for the same call or for a part of it."""
        with self._lock:
            return self._ways.setdefault((op, backend, way), Counter())

    def ways(self) -> dict[Entry, int]:
        """How often each way of a kernel was gone: (op, backend, way) -> count."""
        return self._counts(self._ways)

    def reset(self) -> None:
        with self._lock:
            for counter in (*self._counters.values(), *self._ways.values()):
                counter.reset()

    def _counts(self, counted: dict[Entry, Counter] | None = None) -> dict[Entry, int]:
        with self._lock:
            counters = list((self._counters if counted is None else counted).items())
        return {entry: value for entry, counter in counters if (value := counter.value)}

    def __getitem__(self, entry: Entry) -> int:
        return self._counts()[entry]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._counts())

    def __len__(self) -> int:
        return len(self._counts())

    def __str__(self) -> str:
        rows = [f"{count:>8}  {op}  {backend}  {reason}" for (op, backend, reason), count in self._counts().items()]
        ways = [f"{count:>8}  {op}  {backend}  {way}" for (op, backend, way), count in self.ways().items()]
        shown = ["   calls  op  backend  reason", *rows]
        return "\n".join([*shown, "   times  op  backend  way", *ways] if ways else shown)


_ledger = Ledger()


def ledger() -> Ledger:
    """The process's ledger; `fk.ledger().reset()` sets every count to zero."""
    return _ledger
