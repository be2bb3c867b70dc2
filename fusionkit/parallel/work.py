"""Calls that go on while the process computes."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

from fusionkit.errors import FusionkitError
from fusionkit.parallel.native import Call, library

WAIT_MS = 100


class _Waited(threading.local):
    seconds = 0.0


_waited = _Waited()


def waited_seconds() -> float:
    """How long this thread has waited in calls of communicators so far: for peers, and for the bytes."""
    return _waited.seconds


def count_wait(started: float) -> None:
    """Adds the time since `started`, of time.perf_counter."""
    _waited.seconds += time.perf_counter() - started


class CommunicatorError(FusionkitError, RuntimeError):
    """A peer is dead, late or calls something else. The communicator cannot be used any more, on any rank."""


class Flight:
    """A call with everything that it reads and writes; kept until it is done."""

    def __init__(self, calls: list[Call], arrays: object) -> None:
        self._handle = ctypes.c_void_p()
        self._calls, self._arrays = calls, arrays

    def start(self) -> None:
        calls = (Call * len(self._calls))(*self._calls)
        check(library().fusionkit_parallel_start(calls, len(calls), ctypes.byref(self._handle)))

    def is_started(self) -> bool:
        return bool(self._handle)

    def is_done(self) -> bool:
        return self.is_started() and bool(library().fusionkit_parallel_is_done(self._handle))

    def wait(self) -> None:
        done = ctypes.c_int()
        started = time.perf_counter()
        try:
            while not done:  # between two looks Python handles signals
                check(library().fusionkit_parallel_wait(self._handle, WAIT_MS, ctypes.byref(done)))
        finally:
            count_wait(started)

    def __del__(self) -> None:
        if self._handle:
            library().fusionkit_parallel_forget(self._handle)


class Work:
    """A call that was started with sync_op=False. Until it is done, its arrays must not be changed nor its result read.

    It may be dropped without being waited for: the call goes on, and the communicator keeps its arrays meanwhile.
    """

    def __init__(self, flight: Flight, owner: object, result: Any) -> None:
        self._flight, self._owner, self._result = flight, owner, result

    def wait(self) -> Any:
        """The result, once it is there. Waits in any order, and again, are fine.

        Raises:
            CommunicatorError: the communicator failed, or was closed, before the call was done.
        """
        self._flight.wait()
        return self._result

    def is_completed(self) -> bool:
        """Whether `wait` returns, or raises, at once."""
        return self._flight.is_done()


def check(status: int) -> None:
    """Raises what a function of the library that returned `status` has to tell."""
    if status == 0:
        return
    text = library().fusionkit_parallel_error().decode()
    raise ValueError(text) if status == -2 else CommunicatorError(text)
