"""Collectives and point-to-point between the processes of one host, on NumPy arrays."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fusionkit.errors import FusionkitError, argument_error
from fusionkit.parallel.native import DTYPES, OPS, REDUCE_OPS, Call, Exchange, library

Array = np.ndarray[Any, Any]

_DTYPE_NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES)}


class CommunicatorError(FusionkitError, RuntimeError):
    """A peer is dead, late or calls something else. The communicator cannot be used any more, on any rank."""


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
    _check(library().fusionkit_parallel_create_id(made))
    return made.raw


class Communicator:
    """A group of ranks: one process (or thread) each, on one host.

    All ranks make the same calls in the same order. A call of all ranks ends after all have begun it. Reductions add in
    the order of ranks, so all ranks and all runs get the same bits; float16 and bfloat16 are reduced in float32 and
    rounded once; integers wrap; bool's sum is "or", its product "and"; NaN wins in min and max.

    Args:
        identifier: what `unique_id()` gave, the same on all ranks, used once.
        rank: in [0, world_size), another one on each.
        world_size: how many ranks there are.
        timeout: seconds without any progress after which a call, or joining, fails.

    Arrays are of bool, (u)int8 to (u)int64, float16, bfloat16 (ml_dtypes), float32, float64, complex64 or complex128.

    Raises:
        CommunicatorError: a peer is dead, late, or makes another call. The text names the rank and the call. All ranks
            fail then, now and in every later call.
        ValueError, TypeError: an argument that no rank can use.
    """

    def __init__(self, identifier: bytes, rank: int, world_size: int, *, timeout: float = 300.0) -> None:
        self._handle = ctypes.c_void_p()
        if len(identifier) != library().fusionkit_parallel_id_size():
            raise argument_error("Communicator", "identifier", "what unique_id() gave", f"{len(identifier)} bytes")
        if not 0 <= rank < world_size:
            raise argument_error("Communicator", "rank", f"in [0, {world_size})", rank, f"world_size {world_size}")
        self.rank, self.world_size = rank, world_size
        _check(library().fusionkit_parallel_join(identifier, rank, world_size, timeout, ctypes.byref(self._handle)))

    def all_reduce(self, array: Array, op: str = "sum") -> Array:
        """The reduction of all ranks' arrays, on all ranks. op: sum, average, max, min or product."""
        array = np.ascontiguousarray(array)
        result = np.empty_like(array)
        self._call("all_reduce", array, result, array.size, reduce=op)
        return result

    def all_gather(self, array: Array) -> Array:
        """[world_size, *shape]: all ranks' arrays, in the order of ranks, on all ranks."""
        array = np.ascontiguousarray(array)
        result = np.empty((self.world_size, *array.shape), array.dtype)
        self._call("all_gather", array, result, array.size)
        return result

    def reduce_scatter(self, array: Array, op: str = "sum") -> Array:
        """array: [world_size, *shape] on each rank -> [*shape]: the reduction of everyone's array[rank]."""
        array = np.ascontiguousarray(array)
        if array.ndim == 0 or array.shape[0] != self.world_size:
            raise argument_error("reduce_scatter", "array", f"[{self.world_size}, ...]", list(array.shape))
        result = np.empty(array.shape[1:], array.dtype)
        self._call("reduce_scatter", array, result, result.size, reduce=op)
        return result

    def broadcast(self, array: Array, root: int = 0) -> Array:
        """The root's array, on all ranks; on the others `array` gives shape and dtype."""
        array = np.ascontiguousarray(array)
        result = np.empty_like(array)
        self._call("broadcast", array, result, array.size, root=root)
        return result

    def reduce(self, array: Array, root: int = 0, op: str = "sum") -> Array | None:
        """The reduction of all ranks' arrays on the root, None on the others."""
        array = np.ascontiguousarray(array)
        result = np.empty_like(array) if self.rank == root else None
        self._call("reduce", array, result, array.size, root=root, reduce=op)
        return result

    def all_to_all(self, arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]] | None = None) -> list[Array]:
        """arrays[i] goes to rank i; the result's [i] comes from rank i.

        shapes: of what comes from each rank; by default those of `arrays`. Dtypes are those of `arrays`.
        """
        sent = [np.ascontiguousarray(array) for array in arrays]
        for name, given in (("arrays", sent), ("shapes", sent if shapes is None else shapes)):
            if len(given) != self.world_size:
                raise argument_error("all_to_all", name, f"one for each of {self.world_size} ranks", len(given))
        shapes = [array.shape for array in sent] if shapes is None else shapes
        received = [np.empty(shape, array.dtype) for shape, array in zip(shapes, sent, strict=True)]
        exchanges = (Exchange * self.world_size)(
            *(
                Exchange(
                    s.ctypes.data, s.size, r.ctypes.data, r.size, _number(s, "all_to_all"), _number(r, "all_to_all")
                )
                for s, r in zip(sent, received, strict=True)
            )
        )
        self._submit(Call(self._handle, OPS.index("all_to_all"), exchanges=exchanges), (sent, received, exchanges))
        return received

    def send(self, array: Array, destination: int) -> None:
        """To a rank that calls `recv`. Small arrays leave at once, large ones when the receiver takes them."""
        array = np.ascontiguousarray(array)
        self._call("send", array, None, array.size, root=destination)

    def recv(self, out: Array, source: int) -> Array:
        """Fills `out`, which has the shape and dtype that the source sends, and returns it."""
        if not out.flags.c_contiguous or not out.flags.writeable:
            raise argument_error("recv", "out", "a contiguous array that can be written", "another one")
        self._call("recv", None, out, out.size, root=source)
        return out

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        self._submit(Call(self._handle, OPS.index("barrier")), ())

    def close(self) -> None:
        """Leaves. Peers that still wait for this rank fail. Called at the object's end as well."""
        handle, self._handle = self._handle, ctypes.c_void_p()
        if handle:
            library().fusionkit_parallel_leave(handle)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self.close()

    def _call(
        self, op: str, send: Array | None, recv: Array | None, count: int, *, reduce: str = "sum", root: int = 0
    ) -> None:
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
        self._submit(call, (send, recv))

    def _submit(self, call: Call, arrays: object) -> None:
        if not self._handle:
            raise CommunicatorError(f"{OPS[call.op]}: the communicator must be open, it was closed")
        if _group.calls is None:
            _run([call])
        else:
            _group.calls.append(call)
            _group.arrays.append((self, arrays))


def _number(array: Array, op: str) -> int:
    number = _DTYPE_NUMBERS.get(array.dtype)
    if number is None:
        names = ", ".join(str(dtype) for dtype in DTYPES)
        raise argument_error(op, "dtype", f"one of {names}", array.dtype, kind=TypeError)
    return number


def _run(calls: list[Call]) -> None:
    if calls:
        _check(library().fusionkit_parallel_run((Call * len(calls))(*calls), len(calls)))


def _check(status: int) -> None:
    if status == 0:
        return
    text = library().fusionkit_parallel_error().decode()
    raise ValueError(text) if status == -2 else CommunicatorError(text)
