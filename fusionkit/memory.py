"""Keeps memory that this process frees for its next allocation, in huge pages. Nothing here runs unless called.

glibc returns every freed block of over 32 MB to the system, and the next one of that size costs a page fault for each
4 KiB: on a CPU a fresh 42 MB output took 6 to 10 times as long as the kernel that filled it (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading

# mallopt(3). -1 as the trim threshold means never.
_MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 64 << 20), "M_ARENA_MAX": (-8, 1)}
_MADV_HUGEPAGE = 14  # madvise(2)
_HUGE_PAGE = 2 << 20

_lock = threading.Lock()
_kept = False


def keep_freed_memory(huge_page_bytes: int | None = None) -> None:
    """From now on, memory freed in this process stays in it, and its large tensors lie in huge pages.

    For programs that allocate tensors of the same sizes again and again, as training does. It holds for everything that
    allocates through malloc here: fusionkit, Paddle's and PyTorch's CPU tensors, NumPy. Call it first, before threads
    start: memory that a thread allocated before is not moved. A second call does nothing.

    The price: the process never gives memory back, so it holds its peak until it ends, and a huge page that is touched
    once takes 2 MiB.

    Args:
        huge_page_bytes: the part of the heap to ask huge pages for, in bytes of address space; none of it is touched
            here. Default: three quarters of the machine's memory. 0: ordinary pages.

    Raises:
        RuntimeError: the C library is not glibc, or refused.
        ValueError: huge_page_bytes is negative.
    """
    global _kept
    if huge_page_bytes is None:
        huge_page_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 * 3
    if huge_page_bytes < 0:
        raise ValueError(f"keep_freed_memory: huge_page_bytes must be at least 0, got {huge_page_bytes}")
    library = platform.libc_ver()[0]
    if library != "glibc":
        raise RuntimeError(f"keep_freed_memory needs glibc, and this Python runs on {library or 'another C library'}")
    with _lock:
        if not _kept:
            _configure(ctypes.CDLL(None, use_errno=True), huge_page_bytes)
            _kept = True


def _configure(libc: ctypes.CDLL, huge_page_bytes: int) -> None:
    for name, (parameter, value) in _MALLOPT.items():
        if not libc.mallopt(parameter, value):
            raise RuntimeError(f"keep_freed_memory: glibc refused mallopt({name}, {value})")
    if huge_page_bytes:
        _ask_for_huge_pages(libc, huge_page_bytes)


def _ask_for_huge_pages(libc: ctypes.CDLL, num_bytes: int) -> None:
    """Marks the heap's future: a block is allocated, marked and freed untouched; the heap does not shrink any more."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(num_bytes)
    if block is None:
        raise RuntimeError(
            f"keep_freed_memory: the system refused to reserve {num_bytes / 2**30:.1f} GiB of address space"
            " (vm.overcommit_memory, or a limit on the process). Give a smaller huge_page_bytes, or 0"
        )
    begin = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    end = (block + num_bytes) // _HUGE_PAGE * _HUGE_PAGE
    failed = end > begin and libc.madvise(begin, end - begin, _MADV_HUGEPAGE) != 0
    error = ctypes.get_errno()
    libc.free(block)
    if failed:
        raise RuntimeError(
            f"keep_freed_memory: no huge pages here ({os.strerror(error)}). Give huge_page_bytes=0 for ordinary ones"
        )
