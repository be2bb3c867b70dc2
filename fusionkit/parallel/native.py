"""The communicator's C functions, loaded at the first use."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

LIBRARY = Path(__file__).parent / "lib" / "libfusionkit_parallel.so"

# The numbers of csrc/plan.h, csrc/dtype.h and csrc/reduce.h.
OPS = "barrier all_reduce all_gather reduce_scatter broadcast reduce all_to_all send recv".split()
REDUCE_OPS = "sum average max min product".split()
DTYPES = [
    np.dtype(name)
    for name in (
        "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64".split()
        + [ml_dtypes.bfloat16]
        + "complex64 complex128".split()
    )
]


Watch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)


class Exchange(ctypes.Structure):
    """What goes to and comes from one rank in an all_to_all."""

    _fields_ = [
        ("send", ctypes.c_void_p),
        ("send_count", ctypes.c_uint64),
        ("recv", ctypes.c_void_p),
        ("recv_count", ctypes.c_uint64),
        ("send_dtype", ctypes.c_int32),
        ("recv_dtype", ctypes.c_int32),
    ]


class Call(ctypes.Structure):
    """One call of one rank."""

    _fields_ = [
        ("communicator", ctypes.c_void_p),
        ("op", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("reduce", ctypes.c_int32),
        ("root", ctypes.c_int32),
        ("send", ctypes.c_void_p),
        ("recv", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
        ("exchanges", ctypes.POINTER(Exchange)),
        ("in_turn", ctypes.c_int32),
    ]


@functools.cache
def library() -> Any:
    """The library. Its functions release the interpreter's lock while they wait."""
    if not LIBRARY.exists():
        raise ImportError(f"{LIBRARY} was not built. Run: make build")
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.fusionkit_parallel_error.restype = ctypes.c_char_p
    loaded.fusionkit_parallel_id_size.restype = ctypes.c_size_t
    loaded.fusionkit_parallel_create_id.argtypes = [ctypes.c_char_p]
    loaded.fusionkit_parallel_join.argtypes = [
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_double,
        ctypes.POINTER(ctypes.c_void_p),
    ]
    loaded.fusionkit_parallel_key_size.restype = ctypes.c_size_t
    loaded.fusionkit_parallel_create_key.argtypes = [ctypes.c_char_p]
    loaded.fusionkit_parallel_listen.argtypes = [
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.POINTER(ctypes.c_int),
    ]
    loaded.fusionkit_parallel_stop_listening.argtypes = [ctypes.c_void_p]
    loaded.fusionkit_parallel_stop_listening.restype = None
    loaded.fusionkit_parallel_run.argtypes = [ctypes.POINTER(Call), ctypes.c_size_t]
    loaded.fusionkit_parallel_start.argtypes = [
        ctypes.POINTER(Call),
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_void_p),
    ]
    loaded.fusionkit_parallel_wait.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
    loaded.fusionkit_parallel_is_done.argtypes = [ctypes.c_void_p]
    loaded.fusionkit_parallel_forget.argtypes = [ctypes.c_void_p]
    loaded.fusionkit_parallel_forget.restype = None
    loaded.fusionkit_parallel_sum_in_order.argtypes = [
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_int,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    loaded.fusionkit_parallel_leave.argtypes = [ctypes.c_void_p]
    return loaded


@functools.cache
def run_on_main_thread() -> Any:
    """As fusionkit_parallel_run, but it releases the interpreter's lock by itself, so that Ctrl-C ends a call."""
    prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.POINTER(Call), ctypes.c_size_t)
    return prototype(("fusionkit_parallel_run_on_main_thread", library()))


@functools.cache
def join_hosts() -> Any:
    """Releases the interpreter's lock by itself, so that Ctrl-C ends it."""
    prototype = ctypes.PYFUNCTYPE(
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_char_p),
        ctypes.POINTER(ctypes.c_char_p),
        ctypes.POINTER(ctypes.c_int),
        ctypes.c_double,
        ctypes.c_double,
        Watch,
        ctypes.POINTER(ctypes.c_void_p),
    )
    return prototype(("fusionkit_parallel_join_hosts", library()))
