"""Loads the kernel library, once, at the first kernel call: one OpenMP runtime for it, Paddle and oneDNN.

libfusionkit_cpu.so is linked to no OpenMP. What it needs is resolved by the runtime loaded here into the global scope:
Paddle's own when Paddle is installed, imported or not, so that its threads and ours are the same.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import threading
from pathlib import Path
from types import ModuleType

from fusionkit_backends.cpu import freed_memory, threads

from fusionkit import settings

_lock = threading.Lock()
_native: ModuleType | None = None


def native() -> ModuleType:
    """The extension module over NumPy arrays."""
    global _native
    if _native is None:
        with _lock:
            if _native is None:
                _native = _load()
    return _native


def _load() -> ModuleType:
    paddle_libs = _paddle_libs()
    openmp = "libgomp.so.1" if paddle_libs is None else str(paddle_libs / "libiomp5.so")
    ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)
    module = importlib.import_module("fusionkit_backends.cpu._native")
    module.set_num_threads(threads.default().number)
    module.set_reuse_freed_blocks(freed_memory.is_reused())
    if (isa := settings.value("FUSIONKIT_CPU_ISA")) is not None:
        module.set_isa(isa)
    if paddle_libs is not None:
        module.load_onednn(str(paddle_libs / "libdnnl.so.3"))
    return module


def _paddle_libs() -> Path | None:
    """Paddle's shared libraries, found without importing it."""
    spec = importlib.util.find_spec("paddle")
    if spec is None or not spec.submodule_search_locations:
        return None
    libs = Path(spec.submodule_search_locations[0], "libs")
    return libs if (libs / "libiomp5.so").exists() else None
