"""Collectives and point-to-point between processes, on NumPy arrays."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fusionkit.errors import argument_error
from fusionkit.parallel.native import DTYPES, OPS, REDUCE_OPS, Call, Exchange, library, run_on_main_thread
from fusionkit.parallel.store import Store, join_store, number_of
from fusionkit.parallel.work import CommunicatorError, Flight, Work, check, count_wait

Array = np.ndarray[Any, Any]

_DTYPE_NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES)}


class _Group(threading.local):
    """The calls that wait for the end of this thread's group, and the arrays that they read and write."""

    calls: list[Call] | None = None
    arrays: list[object]


_group = _Group()


@contextmanager
def group() -> Iterator[None]:
    """Calls inside begin together when it ends, and their results are there after it.

    Sends and receives inside need no order among the ranks. Calls of several communicators may be in one group.
    """
    if _group.calls is not None:
        raise RuntimeError("group: groups must not be nested")
    _group.calls, _group.arrays = [], []
    try:
        yield
        calls = _group.calls
        _run(calls)
    finally:
        _group.calls, _group.arrays = None, []


def unique_id() -> bytes:
    """A new identifier for one communicator. Whoever has it and is this host's same user may join."""
    made = ctypes.create_string_buffer(library().fusionkit_parallel_id_size())
    check(library().fusionkit_parallel_create_id(made))
    return made.raw


class Communicator:
    """A group of ranks: one process (or thread) each. This makes one on one host, `from_store` one on several.

    All ranks make the same calls in the same order. A call of all ranks ends after all have begun it. Reductions add in
    the order of ranks, so all ranks and all runs get the same bits. float16 and bfloat16 are reduced in float32 and
    rounded once. Integers wrap. bool's sum is "or", its product "and". NaN wins in min and max.

    Args:
        identifier: what `unique_id()` gave, the same on all ranks, used once.
        rank: in [0, world_size), another one on each.
        world_size: how many ranks there are.
        timeout: seconds without any progress after which a call, or joining, fails.

    Every call takes sync_op=False: it then returns a `Work` at once, whose `wait()` gives what the call would have
    returned, while a thread of the communicator moves the bytes. Calls in flight begin in the order in which they were
    made, which must be the same on all ranks. `out` is a contiguous array for the result, else a new one is made.

    `number` is what errors call it: the same text on all ranks, another one for each communicator.

    Arrays are of bool, (u)int8 to (u)int64, float16, bfloat16 (ml_dtypes), float32, float64, complex64 or complex128.

    Raises:
        CommunicatorError: a peer is dead, late, or makes another call. The text names the rank and the call. All ranks
            fail then, now and in every later call.
        ValueError, TypeError: an argument that no rank can use.
    """

    def __init__(self, identifier: bytes, rank: int, world_size: int, *, timeout: float = 300.0) -> None:
        self._begin(rank, world_size, timeout)
        if len(identifier) != library().fusionkit_parallel_id_size():
            raise argument_error("Communicator", "identifier", "what unique_id() gave", f"{len(identifier)} bytes")
        check(library().fusionkit_parallel_join(identifier, rank, world_size, timeout, ctypes.byref(self._handle)))
        self.number = number_of(identifier)

    def _begin(self, rank: int, world_size: int, timeout: float) -> None:
        self._handle = ctypes.c_void_p()
        self._open = [True]
        self._flights: deque[Flight] = deque()  # with their arrays, until they are done
        self._flights_lock = threading.RLock()  # a signal's handler may come while it is held
        self._process = os.getpid()
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        if not 0 <= rank < world_size:
            raise argument_error("Communicator", "rank", f"in [0, {world_size})", rank, f"world_size {world_size}")

    @classmethod
    def from_store(
        cls,
        store: Store,
        rank: int,
        world_size: int,
        *,
        name: str = "",
        address: str | None = None,
        host: str | None = None,
        timeout: float = 300.0,
    ) -> Communicator:
        """A group whose ranks may be on several hosts and find each other through a store that all can reach.

        Ranks of one host share memory, all others talk through TCP, without encryption: for a network that is trusted.

        Args:
            store: Paddle's TCPStore, or anything with `set(key, bytes)` and `get(key) -> bytes` that waits. Who can
                read it can join: it holds the group's secret.
            name: begins the keys in the store; another one for each group.
            address: of this rank's host, where it listens for the others while they join, and nowhere else. By default
                the host of PADDLE_CURRENT_ENDPOINT, else 127.0.0.1. Loopback serves ranks of one host only.
            host: the ranks with the same one share memory. By default found out: the same machine, user, network and
                process namespace.
            timeout: as for Communicator; a store without `add` has its own for waiting, and ranks that cannot join
                do not tell the others.
        """
        made = cls.__new__(cls)
        made._begin(rank, world_size, timeout)
        made._handle, made.number = join_store(
            store, rank, world_size, name=name, address=address, host=host, timeout=timeout
        )
        return made

    def all_reduce(self, array: Array, op: str = "sum", *, out: Array | None = None, sync_op: bool = True) -> Any:
        """The reduction of all ranks' arrays, on all ranks; `out` may be `array`.

        op: sum, average, max, min or product.
        """
        array = np.ascontiguousarray(array)
        result = _result("all_reduce", out, array.shape, array.dtype)
        return self._call("all_reduce", array, result, array.size, sync_op, reduce=op)

    def all_gather(self, array: Array, *, out: Array | None = None, sync_op: bool = True) -> Any:
        """[world_size, *shape]: all ranks' arrays, in the order of ranks, on all ranks. `array` may be out[rank]."""
        array = np.ascontiguousarray(array)
        result = _result("all_gather", out, (self.world_size, *array.shape), array.dtype)
        return self._call("all_gather", array, result, array.size, sync_op)

    def reduce_scatter(self, array: Array, op: str = "sum", *, out: Array | None = None, sync_op: bool = True) -> Any:
        """array: [world_size, *shape] on each rank -> [*shape]: the reduction of everyone's array[rank]."""
        array = np.ascontiguousarray(array)
        if array.ndim == 0 or array.shape[0] != self.world_size:
            raise argument_error("reduce_scatter", "array", f"[{self.world_size}, ...]", list(array.shape))
        result = _result("reduce_scatter", out, array.shape[1:], array.dtype)
        return self._call("reduce_scatter", array, result, result.size, sync_op, reduce=op)

    def broadcast(self, array: Array, root: int = 0, *, out: Array | None = None, sync_op: bool = True) -> Any:
        """The root's array, on all ranks; on the others `array` gives shape and dtype."""
        array = np.ascontiguousarray(array)
        result = _result("broadcast", out, array.shape, array.dtype)
        return self._call("broadcast", array, result, array.size, sync_op, root=root)

    def reduce(
        self, array: Array, root: int = 0, op: str = "sum", *, out: Array | None = None, sync_op: bool = True
    ) -> Any:
        """The reduction of all ranks' arrays on the root, where `out` may be given; None on the others."""
        array = np.ascontiguousarray(array)
        result = _result("reduce", out, array.shape, array.dtype) if self.rank == root else None
        return self._call("reduce", array, result, array.size, sync_op, root=root, reduce=op)

    def all_to_all(
        self,
        arrays: Sequence[Array],
        shapes: Sequence[tuple[int, ...]] | None = None,
        *,
        out: Sequence[Array] | None = None,
        sync_op: bool = True,
        in_turn: bool = False,
    ) -> Any:
        """arrays[i] goes to rank i; the result's [i] comes from rank i. Any of them may be empty.

        shapes: of what comes from each rank; by default those of `arrays`. Dtypes are those of `arrays`, or of `out`.
        in_turn: begin to send when the earlier calls with in_turn have sent everything, so that calls in flight do not
            share the link; what comes is received at any time.
        """
        sent = [np.ascontiguousarray(array) for array in arrays]
        shapes = [array.shape for array in sent] if shapes is None else shapes
        for name, given in (("arrays", sent), ("shapes", shapes), ("out", shapes if out is None else out)):
            if len(given) != self.world_size:
                raise argument_error("all_to_all", name, f"one for each of {self.world_size} ranks", len(given))
        if out is None:
            out = [np.empty(shape, array.dtype) for shape, array in zip(shapes, sent, strict=True)]
        received = [_writable("all_to_all", array) for array in out]
        exchanges = (Exchange * self.world_size)(*map(_exchange, sent, received))
        call = Call(self._handle, OPS.index("all_to_all"), exchanges=exchanges, in_turn=in_turn)
        return self._submit(call, (sent, received, exchanges), received, sync_op)

    def send(self, array: Array, destination: int, *, sync_op: bool = True) -> Any:
        """To a rank that calls `recv`. Small arrays leave at once, large ones when the receiver takes them."""
        array = np.ascontiguousarray(array)
        return self._call("send", array, None, array.size, sync_op, root=destination)

    def recv(self, out: Array, source: int, *, sync_op: bool = True) -> Any:
        """Fills `out`, which has the shape and dtype that the source sends, and returns it."""
        return self._call("recv", None, _writable("recv", out), out.size, sync_op, root=source)

    def barrier(self, *, sync_op: bool = True) -> Any:
        """Returns when all ranks have called it."""
        return self._submit(Call(self._handle, OPS.index("barrier")), (), None, sync_op)

    def close(self) -> None:
        """Leaves. Peers that still wait for this rank fail, and so does this rank's work in flight. Called at the
        object's end as well."""
        try:
            self._open.pop()  # in one step: of two threads, or a signal's handler and what it interrupted, one leaves
        except IndexError:
            return
        handle, self._handle = self._handle, ctypes.c_void_p()
        # A forked child has neither the thread nor the right to leave. While calls are about to end, bytes still move.
        if handle and self._process == os.getpid() and library().fusionkit_parallel_leave(handle):
            self._flights.clear()

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()

    def _call(
        self,
        op: str,
        send: Array | None,
        recv: Array | None,
        count: int,
        sync_op: bool,
        *,
        reduce: str = "sum",
        root: int = 0,
    ) -> Any:
        if reduce not in REDUCE_OPS:
            raise argument_error(op, "op", f"one of {', '.join(REDUCE_OPS)}", repr(reduce))
        if not 0 <= root < self.world_size:
            raise argument_error(op, "the other rank", f"in [0, {self.world_size})", root)
        present = send if send is not None else recv
        assert present is not None
        call = Call(
            self._handle,
            OPS.index(op),
            _number(present, op),
            REDUCE_OPS.index(reduce),
            root,
            None if send is None else send.ctypes.data,
            None if recv is None else recv.ctypes.data,
            count,
        )
        return self._submit(call, (send, recv), recv, sync_op)

    def _submit(self, call: Call, arrays: object, result: Any, sync_op: bool) -> Any:
        if not self._handle:
            raise CommunicatorError(f"{OPS[call.op]}: the communicator must be open, it was closed")
        if self._process != os.getpid():
            raise CommunicatorError(
                f"{OPS[call.op]}: the communicator must be used in the process that made it, {self._process}, got its "
                f"child {os.getpid()}, which would take the parent's messages. Make communicators after the fork"
            )
        if not sync_op:
            return self._start(call, arrays, result)
        if _group.calls is None:
            _run([call])
        else:
            _group.calls.append(call)
            _group.arrays.append((self, arrays))
        return result

    def _start(self, call: Call, arrays: object, result: Any) -> Work:
        if _group.calls is not None:
            raise argument_error(OPS[call.op], "sync_op", "True inside group()", False)
        with self._flights_lock:
            while self._flights and self._flights[0].is_done():
                self._flights.popleft()
            flight = Flight([call], arrays)
            self._flights.append(flight)  # before it starts: Ctrl-C may come as soon as it has
            try:
                flight.start()
            finally:
                if not flight.is_started():
                    with contextlib.suppress(ValueError):  # another thread's close() has let go of all
                        self._flights.remove(flight)
            return Work(flight, self, result)


def _result(op: str, out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype:
        raise argument_error(op, "out", f"{list(shape)} {dtype}", f"{list(out.shape)} {out.dtype}")
    return _writable(op, out)


def _writable(op: str, out: Array) -> Array:
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise argument_error(op, "out", "a contiguous array that can be written", "another one")
    return out


def _exchange(sent: Array, received: Array) -> Exchange:
    numbers = _number(sent, "all_to_all"), _number(received, "all_to_all")
    return Exchange(sent.ctypes.data, sent.size, received.ctypes.data, received.size, *numbers)


def _number(array: Array, op: str) -> int:
    number = _DTYPE_NUMBERS.get(array.dtype)
    if number is None:
        names = ", ".join(str(dtype) for dtype in DTYPES)
        raise argument_error(op, "dtype", f"one of {names}", array.dtype, kind=TypeError)
    return number


def _run(calls: list[Call]) -> None:
    if not calls:
        return
    is_main = threading.get_ident() == threading.main_thread().ident
    run = run_on_main_thread() if is_main else library().fusionkit_parallel_run
    started = time.perf_counter()
    try:
        check(run((Call * len(calls))(*calls), len(calls)))
    finally:
        count_wait(started)
