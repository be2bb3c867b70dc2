"""What leaves and reaches a rank's link, sampled while a call runs. For the picture: sampling takes processor time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fusionkit_bench.mc2.network import DEVICE

COUNTERS = Path("/proc/net/dev")  # of this process's network namespace
PERIOD_S = 0.005  # at 200 Mbit/s a packet of 64 KiB, as the bucket sees it, takes 2.6 ms

Sample = tuple[float, int, int]  # seconds of time.perf_counter, bytes sent and received so far


@contextmanager
def sampled() -> Iterator[list[Sample]]:
    """Samples of what happens inside; none where the rank has no link of its own."""
    samples: list[Sample] = []
    stop = threading.Event()

    def look() -> None:
        while (sample := read()) is not None:
            samples.append(sample)
            if stop.wait(PERIOD_S):
                break

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def read() -> Sample | None:
    """The counters now. Source: proc(5): received bytes are the first field of a device, sent bytes the ninth."""
    for line in COUNTERS.read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == DEVICE:
            fields = numbers.split()
            return time.perf_counter(), int(fields[8]), int(fields[0])
    return None


def rates(samples: Sequence[Sample]) -> list[tuple[float, float, float]]:
    """(middle of the interval, bytes/s out, bytes/s in) between samples."""
    return [
        ((t0 + t1) / 2, (out1 - out0) / (t1 - t0), (in1 - in0) / (t1 - t0))
        for (t0, out0, in0), (t1, out1, in1) in zip(samples, samples[1:], strict=False)
    ]
