"""What dispatch costs: the op over `bind()`'s callable, and the import, in processor time, interleaved."""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable

from fusionkit_bench import processor

# Rule 4 of docs/design.md: microseconds over bind()'s callable.
LIMITS_US = {"two tensors": 1.0, "three tensors": 2.0}
IMPORT_LIMIT_MS = 100
CALLS = 2000


def measure(rounds: int) -> None:
    """Prints a table, and whether both are within their limits."""
    import paddle

    import fusionkit as fk

    x, weight = paddle.ones([2, 64]), paddle.ones([64])
    pairs = {
        "two tensors": (fk.fusion_rms_norm, (x, weight)),
        "three tensors": (fk.fusion_add_rms_norm, (x, x.clone(), weight)),
    }
    print(f"{processor.name()}: dispatch, processor time, median of {rounds} rounds of {CALLS} calls, us a call")
    print(f"{'':<14} {'bound':>7} {'op':>7} {'dispatch':>9} {'limit':>6}")
    within = True
    for name, (op, tensors) in pairs.items():
        op(*tensors)
        direct, dispatched = interleaved(op.bind(*tensors), op, tensors, rounds)
        extra = statistics.median(d - b for d, b in zip(dispatched, direct, strict=True))
        within = within and extra <= LIMITS_US[name]
        print(
            f"{name:<14} {statistics.median(direct):7.2f} {statistics.median(dispatched):7.2f} {extra:9.2f} "
            f"{LIMITS_US[name]:6.1f}"
        )
    own, numpy = (min(import_ms(module) for _ in range(5)) for module in ("fusionkit", "numpy"))
    print(f"import, least of 5 processes: fusionkit {own:.0f} ms, limit {IMPORT_LIMIT_MS}; numpy {numpy:.0f} ms")
    print("within the limits" if within and own <= IMPORT_LIMIT_MS else "over the limit")


def import_ms(module: str) -> float:
    """Of a fresh process, which has its modules compiled."""
    code = f"import time; began = time.process_time(); import {module}; print(time.process_time() - began)"
    return 1000 * float(subprocess.check_output([sys.executable, "-c", code]))


def interleaved(
    first: Callable[..., object], second: Callable[..., object], tensors: tuple[object, ...], rounds: int
) -> tuple[list[float], list[float]]:
    """Microseconds a call of each, one after the other in every round."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, seen in zip((first, second), times, strict=True):
            seconds = timeit.timeit(functools.partial(run, *tensors), timer=time.thread_time, number=CALLS)
            seen.append(seconds / CALLS * 1e6)
    return times
