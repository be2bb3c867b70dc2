"""The ceiling of decoding: how fast this machine's memory is read."""

from __future__ import annotations

import importlib
import time

import numpy as np


class ReadBandwidth:
    """
    Args:
        num_bytes: read in one pass, many times the caches.
        num_threads: that read.
    """

    def __init__(self, num_bytes: int, num_threads: int) -> None:
        self._native = importlib.import_module("fusionkit_backends.cpu.runtime").native()
        self._native.set_num_threads(num_threads)
        self._source, self._target = np.ones(num_bytes // 4, np.int32), np.empty(0, np.int32)

    def gb_per_s(self, passes: int) -> float:
        """Of the fastest pass."""
        seconds = []
        for _ in range(passes):
            begun = time.perf_counter()
            self._native.stream(self._source, self._target, False)
            seconds.append(time.perf_counter() - begun)
        return self._source.nbytes / min(seconds) / 1e9
