"""`fusionkit bench`: what dispatch costs. The kernels' own benchmarks come with their tuning."""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
import timeit
from collections.abc import Callable

NAME = "bench"
HELP = "measure what dispatch costs over a bound kernel"

# Rule 4 of docs/design.md: microseconds over bind()'s callable.
LIMITS_US = {"two tensors": 1.0, "three tensors": 2.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds (default: 30)")


def run(options: argparse.Namespace) -> int:
    import paddle

    import fusionkit as fk

    x, weight = paddle.ones([2, 64]), paddle.ones([64])
    pairs = {
        "two tensors": (fk.fusion_rms_norm, (x, weight)),
        "three tensors": (fk.fusion_add_rms_norm, (x, x.clone(), weight)),
    }
    print(
        f"{platform.processor() or platform.machine()}, Paddle {paddle.__version__}, {options.rounds} rounds, us a call"
    )
    print(f"{'':<14} {'bound':>7} {'op':>7} {'dispatch':>9} {'limit':>6}")
    slow = 0
    for name, (op, tensors) in pairs.items():
        op(*tensors)
        direct, dispatched = _interleaved(op.bind(*tensors), op, tensors, options.rounds)
        extra = statistics.median(d - b for d, b in zip(dispatched, direct, strict=True))
        slow += extra > LIMITS_US[name]
        print(
            f"{name:<14} {statistics.median(direct):7.2f} {statistics.median(dispatched):7.2f} {extra:9.2f} "
            f"{LIMITS_US[name]:6.1f}"
        )
    print("within the limits" if not slow else "over the limit")
    return int(slow > 0)


def _interleaved(
    first: Callable[..., object], second: Callable[..., object], tensors: tuple[object, ...], rounds: int
) -> tuple[list[float], list[float]]:
    """Processor microseconds a call of each, one after the other in every round: a busy machine slows both alike."""
    number = 2000
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, seen in zip((first, second), times, strict=True):
            seen.append(
                timeit.timeit(functools.partial(run, *tensors), timer=time.thread_time, number=number) / number * 1e6
            )
    return times
