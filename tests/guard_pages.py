"""NumPy arrays whose memory ends, or begins, at a page that faults: a read or write past it ends the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 2, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

PROT_NONE = 0
MISTAKES = ("read end", "read begin", "write end", "write begin")  # what tests do on purpose, to see it caught


def guarded(array: np.ndarray, edge: str) -> np.ndarray:
    """A copy whose last byte is before a faulting page ("end"), or whose first one is after it ("begin"). It lives as
    long as the process."""
    page = mmap.PAGESIZE
    pages_bytes = -(-array.nbytes // page) * page
    mapping = _libc.mmap(None, pages_bytes + 2 * page, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert mapping != ctypes.c_void_p(-1).value, "mmap failed"
    start = mapping + page
    assert pages_bytes == 0 or _libc.mprotect(start, pages_bytes, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    copy = at_address(start + (pages_bytes - array.nbytes if edge == "end" else 0), array.dtype, array.size)
    copy[:] = array.ravel()
    return copy.reshape(array.shape)


def at_address(address: int, dtype: np.dtype, count: int) -> np.ndarray:
    """An array over memory that nobody checks."""
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype) if count else np.empty(0, dtype)
