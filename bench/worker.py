"""A process that holds the contestants of one subject at a time, and the handle by which the benchmark asks it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from fusionkit_bench.subject import Subject

CACHE_BYTES = 128 << 20  # written through to empty the caches: four times the largest last-level cache met so far
Key = tuple[str, str]  # contestant, direction


@dataclass(frozen=True)
class Kind:
    """What a worker is: whose functions it times, and whether its process keeps freed memory."""

    name: str
    contestants: str  # "alone", "tuned", "stock", "as_it_comes", "libraries" or "torch"
    keeps_memory: bool
    leaves_threads_spinning: bool
    variables: tuple[tuple[str, str], ...] = ()  # of its environment


# Intel's OpenMP runtime, which Paddle brings, keeps idle threads spinning for 200 ms (KMP_BLOCKTIME).
ALONE = Kind("alone", "alone", True, True)
LIBRARIES = Kind("libraries", "libraries", True, False)
KINDS = (
    Kind("tuned", "tuned", True, True),
    LIBRARIES,
    Kind("stock", "stock", False, True),
    Kind("torch", "torch", False, False),
    Kind("torch-tuned", "torch", True, False),
)


class WorkerEnded(RuntimeError):
    """A worker's process is gone: it was killed for its memory, or crashed."""


@contextmanager
def _inherited(name: str, value: str) -> Iterator[None]:
    """Processes that are started meanwhile have the variable; afterwards this one has what it had."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


class Worker:
    """Starts the process; its methods talk to it."""

    def __init__(self, kind: Kind, backend: str, num_threads: int) -> None:
        self.kind = kind
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, kind, backend), daemon=True)
        with ExitStack() as stack:  # read by the child's runtimes when they are loaded
            for variable in (("OMP_NUM_THREADS", str(num_threads)), *kind.variables):
                stack.enter_context(_inherited(*variable))
            self._process.start()
        theirs.close()

    def prepare(self, subject: Subject) -> None:
        """Begins to; workers may do so at the same time."""
        self._send("prepare", subject)

    def prepared(self) -> tuple[list[Key], dict[str, Any]]:
        """The contestants, and the subject's sizes."""
        keys, dims = self._receive()
        return keys, dims

    def time(self, key: Key, number: int, cold: bool) -> float:
        """Seconds a call, over `number` calls; each after the caches were emptied when `cold`."""
        self._send("time", key, number, cold)
        seconds: float = self._receive()
        return seconds

    def page_faults(self) -> int:
        """So far, of the kind that fetches no page from a disk."""
        self._send("page faults")
        count: int = self._receive()
        return count

    def close(self) -> None:
        if self._process.is_alive():
            self._connection.send(("close",))
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()

    def _send(self, *request: Any) -> None:
        self._asked = request
        try:
            self._connection.send(request)
        except OSError:
            raise self._ended() from None

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ended(self) -> WorkerEnded:
        self._process.join()
        return WorkerEnded(f"the {self.kind.name} worker ended with {self._process.exitcode} on {self._asked}")


def serve(connection: Connection, kind: Kind, backend: str) -> None:
    """The worker's loop. Ctrl-C is the parent's: it prints what was measured and closes its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if kind.keeps_memory:
        from fusionkit import keep_freed_memory

        keep_freed_memory()
    caches = np.zeros(CACHE_BYTES // 8)
    calls: dict[Key, Any] = {}
    while True:
        try:
            request, *arguments = connection.recv()
        except EOFError:
            return
        if request == "close":
            return
        try:
            if request == "prepare":
                (subject,) = arguments
                made = subject.arguments()
                calls = {}
                calls = contestants(kind, backend, subject, made)
                connection.send((list(calls), subject.dims(made)))
            elif request == "page faults":
                connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            else:
                key, number, cold = arguments
                seconds = timed_cold(calls[key], number, caches) if cold else timed(calls[key], number)
                connection.send(seconds * getattr(calls[key], "factor", 1.0))
        except Exception as error:  # the parent raises it
            connection.send(error)


def contestants(kind: Kind, backend: str, subject: Subject, made: dict[str, Any]) -> dict[Key, Any]:
    if kind.contestants == "torch":
        from fusionkit_bench import torch_peers

        return torch_peers.contestants(subject, made, " (tuned)" if kind.keeps_memory else "")
    from fusionkit_bench import contestants

    return getattr(contestants, kind.contestants)(backend, subject, made)  # type: ignore[no-any-return]


def timed(call: Any, number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def timed_cold(call: Any, number: int, caches: Any) -> float:
    total = 0.0
    for _ in range(number):
        np.add(caches, 1.0, out=caches)
        start = time.perf_counter()
        call()
        total += time.perf_counter() - start
    return total / number
